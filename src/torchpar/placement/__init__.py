"""Gives services their cores and accelerators of a host."""
