"""The conf's text to a Config: every problem with its file and line."""
