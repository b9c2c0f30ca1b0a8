"""Image bytes to pixels and back, and what is measured of pixels."""
