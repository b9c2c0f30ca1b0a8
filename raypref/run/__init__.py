"""The whole run: its settings, its steps, and how they are carried out."""
