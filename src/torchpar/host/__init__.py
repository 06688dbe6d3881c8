"""The only code that touches the machine: files, sysfs, dpkg, systemd, processes."""
