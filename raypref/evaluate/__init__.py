"""Evaluation: generate or paint, score, tabulate (paper section 4)."""
