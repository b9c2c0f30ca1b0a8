"""The objectives of a training, one file each."""
