"""The blind study: pairs of images that people choose between, and what they chose."""
