"""Alignment: the two training stages (paper section 3.3)."""
