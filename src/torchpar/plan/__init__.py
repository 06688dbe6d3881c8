"""The numbers of one service, each with its reason."""
