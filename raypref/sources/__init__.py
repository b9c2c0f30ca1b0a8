"""Datasets as people keep and publish them: photographs, labelled pairs, prompts and holes."""
