"""Compares what runs with what was planned."""
