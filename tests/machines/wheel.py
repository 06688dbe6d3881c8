"""A virtual environment with PyTorch's wheel from PyPI, made once on this host and mounted in a machine.

Its interpreter is a link to /usr/bin/python3, so it runs in a Debian whose Python is of this host's version.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.machines.roots import Report, Suite, cache, locked

TORCH = "2.13.0"

# Where machines have it.
MOUNT = "/srv/wheel"
PYTHON = f"{MOUNT}/bin/python3"

_PYTHON_OF = {Suite.BOOKWORM: "Python 3.11", Suite.TRIXIE: "Python 3.13"}


class WheelError(Exception):
    """There can be no such environment for the release on this host."""


def suite_of_this_host() -> Suite:
    """The release whose Python is this host's. Raises WheelError."""
    version = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    for suite, python in _PYTHON_OF.items():
        if version.startswith(f"{python}."):
            return suite
    raise WheelError(f"/usr/bin/python3 is {version.strip()}: no release's that is tested")


def wheel_environment(suite: Suite, report: Report = print) -> Path:
    """The folder of the environment, for a machine of suite_of_this_host(), to be mounted at MOUNT."""
    folder = cache() / f"wheel-{suite.value}-torch-{TORCH}"
    with locked(cache() / "wheel.lock"):
        if not (folder / "complete").exists():
            report(f"installing torch {TORCH} from PyPI in a virtual environment")
            subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"torch=={TORCH}", "numpy"], check=True)
            (folder / "complete").touch()
    return folder
