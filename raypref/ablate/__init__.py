"""Tables of many runs: what to vary, what it costs, running it, what came out."""
