"""raypref: align text-to-image diffusion models from real photographs, on a Ray cluster."""

__version__ = "0.1.0"
