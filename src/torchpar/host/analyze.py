"""Asks `systemd-analyze verify` of units that are not in force: systemd's own parser, in a directory of its own."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torchpar.contract.errors import TorchparError
from torchpar.host.files import remove, write_new
from torchpar.host.program import run

# And the number of the process that it belongs to.
_PRIVATE = "/run/torchpar-verify-"


def verify_units(files: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the lines of `systemd-analyze verify` on units with these drop-ins (path → text); none if all is well.

    Its exit status is 0 even for values that it cannot parse, so every line counts. Raises TorchparError when the
    drop-ins cannot be written for it.
    """
    if not files:
        return ()
    with _private_directory() as directory:
        for path, text in files.items():
            file = directory / path
            file.parent.mkdir()
            write_new(file, text)
        units = sorted(path.partition(".d/")[0] for path in files)
        done = run(
            ["systemd-analyze", "verify", "--man=no", *units],
            environment={"SYSTEMD_UNIT_PATH": f"{directory}:"},
        )
    said = (line.removeprefix(f"{directory}/") for line in (done.stderr + done.stdout).splitlines())
    return tuple(line for line in said if line.strip())


def remove_leftovers() -> None:
    """Removes what commands that were killed, or could not, have left in /run."""
    for directory in glob.glob(f"{_PRIVATE}*"):
        if not os.path.exists(f"/proc/{directory.removeprefix(_PRIVATE)}"):
            with contextlib.suppress(OSError):
                remove(Path(directory))


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    """Makes a directory that nobody else can write. Raises TorchparError where it or its contents cannot be made."""
    try:
        if os.geteuid() != 0:
            with tempfile.TemporaryDirectory(prefix="torchpar-verify-", ignore_cleanup_errors=True) as name:
                yield Path(name)
            return
        # In /run, which only root can write and which is there before any other disk.
        directory = Path(f"{_PRIVATE}{os.getpid()}")
        remove(directory)
        os.mkdir(directory, 0o700)
        try:
            yield directory
        finally:
            with contextlib.suppress(OSError):
                remove(directory)
    except OSError as error:
        raise TorchparError(f"{error.filename or 'a temporary file'}: {error.strerror}; nothing has changed") from None
