"""Divides CPUs among the services that really run: rules only, which touch neither systemd nor processes."""
