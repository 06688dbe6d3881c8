"""What runs, compared with what was planned."""
