"""Shared by a unit, its job and torchpard; Python 3.9, the standard library, and nothing else."""
