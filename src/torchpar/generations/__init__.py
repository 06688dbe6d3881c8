"""From plans to what systemd holds, and back: kept, put in force, read back, and gone back from."""
