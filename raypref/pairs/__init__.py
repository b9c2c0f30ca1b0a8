"""What becomes a pair, and what its labels say of the generators."""
