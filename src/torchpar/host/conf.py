"""Finds and reads the files of the configuration, and refuses those that others than root can write.

Whoever can write the conf decides what runs as whom, so a file that is not root's alone is not read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from torchpar.errors import ConfigError
from torchpar.syntax import ConfFile

# What packages ship is read first, so that whatever the admin writes wins; otherwise as systemd's own files.
_MAIN = ("etc/torchpar.conf", "run/torchpar.conf", "usr/lib/torchpar.conf")
_VENDOR = "usr/lib/torchpar.conf.d"
_DROP_INS = (_VENDOR, "usr/local/lib/torchpar.conf.d", "run/torchpar.conf.d", "etc/torchpar.conf.d")
_LIMIT = 2**20


def find_conf_files(root: Path = Path("/")) -> tuple[Path, ...]:
    """The files in force below `root`, in the order in which later ones win.

    A file name in a higher directory masks the same name in a lower one; an empty file or a link to /dev/null masks
    without adding anything.
    """
    main = next((root / path for path in _MAIN if os.path.lexists(root / path)), None)
    drop_ins: dict[str, Path] = {}
    for directory in _DROP_INS:
        folder = root / directory
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError([f"{folder}: {error.strerror}"]) from None
        drop_ins.update({name: folder / name for name in names if name.endswith(".conf")})
    in_order = [path for _, path in sorted(drop_ins.items())]
    vendor = [path for path in in_order if path.parent == root / _VENDOR]
    own = [path for path in in_order if path.parent != root / _VENDOR]
    return tuple(path for path in (*vendor, main, *own) if path is not None and not _is_mask(path))


def read_conf_files(paths: tuple[Path, ...], *, trusted: bool) -> tuple[ConfFile, ...]:
    """Read the files. With `trusted` each file and the directories above it must be root's and writable by root alone.

    Raises ConfigError with every file that cannot be read or trusted, and what to do about it.
    """
    files, problems = [], []
    for path in paths:
        try:
            if trusted:
                problems += _distrust(path)
            with open(path, "rb") as file:
                data = file.read(_LIMIT + 1)
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
            continue
        if len(data) > _LIMIT:
            problems.append(f"{path}: is larger than {_LIMIT // 1024} KiB; this is no torchpar.conf")
            continue
        # surrogateescape keeps what is not UTF-8 until the parser can name the line.
        files.append(ConfFile(str(path), data.decode("utf-8", "surrogateescape")))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return tuple(files)


def _is_mask(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size == 0)


def _distrust(path: Path) -> list[str]:
    """What is wrong with the owners and modes of a file and of the directories above it."""
    problems = []
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        status = place.stat()
        sticky = place != real and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0:
            problems.append(f"{place}: does not belong to root, who alone may decide what runs; chown root {place}")
        elif status.st_mode & 0o022 and not sticky:
            problems.append(f"{place}: can be written by others than root; chmod go-w {place}")
    return problems
