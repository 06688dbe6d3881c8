"""What a unit, its job and torchpard know of each other; Python 3.9, the standard library, and nothing else."""
