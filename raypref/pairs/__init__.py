"""Pairs: what becomes a preference pair, from people's labels too."""
