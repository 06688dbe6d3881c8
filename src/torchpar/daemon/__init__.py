"""torchpard, the observer: it looks, compares and tells, and changes nothing."""
