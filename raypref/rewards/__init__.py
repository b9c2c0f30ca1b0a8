"""Reward models: one file each, one interface."""
