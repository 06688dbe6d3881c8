"""The observer torchpard: it looks, compares and tells; it moves services that share CPUs, and nothing else."""
