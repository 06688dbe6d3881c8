"""Finds who runs a command: the user that has logged in, also behind sudo or su."""

from __future__ import annotations

import os
import pwd

# The login that the kernel keeps for each process, and has none of for what systemd starts; see
# proc_pid_loginuid(5).
_LOGIN, _NONE = "/proc/self/loginuid", 2**32 - 1


def read_person() -> str:
    """Returns the name of who has logged in, else of who has called sudo, else of this process's user."""
    try:
        with open(_LOGIN, encoding="ascii") as file:
            login = int(file.read(32))
    except (OSError, ValueError):
        login = _NONE
    if login == _NONE:
        sudo = os.environ.get("SUDO_UID", "")
        login = int(sudo) if sudo.isdecimal() and len(sudo) < 10 else os.geteuid()
    try:
        return pwd.getpwuid(login).pw_name
    except KeyError:
        return f"user {login}"
