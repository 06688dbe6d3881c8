"""The first process of an inference service: it starts those that serve, and answers for them. It imports no torch."""
