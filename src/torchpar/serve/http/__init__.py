"""HTTP for an inference service: connections, the inference protocol, metrics and the page; no framework."""
