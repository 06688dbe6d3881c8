"""A virtual environment with PyTorch's wheel from PyPI, made once on this host and mounted in a machine.

Its interpreter is a link to /usr/bin/python3, so it runs in a Debian whose Python is of this host's version.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.machines.roots import Report, Suite, cache, locked, suite_of_this_host

TORCH = "2.13.0"

# Where machines have it.
MOUNT = "/srv/wheel"
PYTHON = f"{MOUNT}/bin/python3"


class WheelError(Exception):
    """There can be no such environment for the release on this host."""


def wheel_suite() -> Suite:
    """The release whose machines can have the environment. Raises WheelError."""
    if suite := suite_of_this_host():
        return suite
    raise WheelError("the Python of /usr/bin/python3 is no release's that is tested")


def wheel_environment(suite: Suite, report: Report = print) -> Path:
    """The folder of the environment, for a machine of wheel_suite(), to be mounted at MOUNT."""
    folder = cache() / f"wheel-{suite.value}-torch-{TORCH}"
    with locked(cache() / "wheel.lock"):
        if not (folder / "complete").exists():
            report(f"installing torch {TORCH} from PyPI in a virtual environment")
            subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"torch=={TORCH}", "numpy"], check=True)
            (folder / "complete").touch()
    return folder
