"""PyTorch jobs placed right on a Debian host: conf and hardware in, systemd units out."""
