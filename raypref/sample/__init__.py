"""Sampling: images at inference time, by methods that a reward steers."""
