"""Rewards against the choices of people."""
