"""The command line: one module a command, each click decorators and then a plain call."""
