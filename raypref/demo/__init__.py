"""The embedded default: a small captioned world and small checkpoints in hub layout."""
