"""The inference server, inside a service's own interpreter: the standard library and the service's torch."""
