"""Which service gets which cores and accelerators of a host."""
