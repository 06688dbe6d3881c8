"""Plans to the text of unit files: drop-ins, their quoting, and how two sets of them differ."""
