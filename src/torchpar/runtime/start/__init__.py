"""Leads from run.py to the first line of a script, and sets the plan when the script imports torch."""
