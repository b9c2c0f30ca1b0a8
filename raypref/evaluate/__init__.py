"""Evaluation: generate, score, tabulate (paper section 4)."""
