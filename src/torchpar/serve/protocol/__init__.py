"""The Open Inference Protocol, without its transports: tensors, requests, answers, and everything one can ask for."""
