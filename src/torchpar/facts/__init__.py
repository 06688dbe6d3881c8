"""What a host and its processes are: immutable values and their JSON, no reading."""
