"""Curation: captioned photographs in, preference pairs out (paper section 3.2)."""
