"""Plans become what systemd holds: compiled, kept, put in force, read back, and gone back from."""
