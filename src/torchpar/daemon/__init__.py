"""The observer torchpard: it looks, compares and tells, and changes nothing."""
