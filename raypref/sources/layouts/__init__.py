"""How datasets are laid out: one file per layout."""
