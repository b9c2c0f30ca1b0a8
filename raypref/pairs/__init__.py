"""Pairs: what becomes a preference pair: people's labels, candidates that rewards rank."""
