"""The host and its processes as immutable values with their JSON; nothing here reads."""
