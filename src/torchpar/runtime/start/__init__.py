"""From run.py to the first line of a script, and what is set when it imports torch."""
