"""Jobs that nobody declared: what `torchpar run` gives them of a host."""
