"""What all the rest stands on: settings, ledgers, rows, progress, records. No torch, no Ray."""
