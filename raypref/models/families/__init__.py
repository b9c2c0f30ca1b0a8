"""The model families there are: one file each."""
