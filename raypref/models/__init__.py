"""Models: where they come from, LoRAs, model families, U2-Net."""
