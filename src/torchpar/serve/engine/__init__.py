"""Models in memory, requests in, answers out: the protocols know this and nothing below it."""
