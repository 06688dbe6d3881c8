"""Many hosts, from the facts that each has exported: their plans, what these change, and whether they fit together."""
