"""Decides where a service may write, and what its drop-in says so that it is so.

The template units confine torchpar's own user to the service's folders. Another user has a home, files and rights,
which are the limits of its training jobs: those see and write what a login of that user does, but for the folders of
the system. An inference service answers the network, so it stays confined whoever it runs as.
"""

from __future__ import annotations

import shlex

from torchpar.conf.services import Service
from torchpar.conf.values import simple_path
from torchpar.placement.claims import Reason

# What ProtectSystem=full makes read-only, see systemd.exec(5).
SYSTEM_FOLDERS = ("/usr", "/boot", "/efi", "/etc")
# No work of a service: those, what Debian has links to in /usr for, and what the kernel shows.
_NO_WORK = (*SYSTEM_FOLDERS, "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/proc", "/sys", "/dev")

# A login's own: the whole file system with its /tmp, group folders (mode g+s, and chgrp to one's own groups, which the
# template unit refuses as privileged), keys, and new files' mode.
LOGIN = (
    ("ProtectSystem", "full"),
    ("ProtectHome", "no"),
    ("PrivateTmp", "no"),
    ("RestrictSUIDSGID", "no"),
    ("SystemCallFilter", "@chown"),
    ("KeyringMode", "shared"),
    ("UMask", "0022"),
)

# What lets root write anywhere; the template unit takes all capabilities.
ROOT = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER")

# Directives that the conf can pass on by Service.KEY= and that change where a service may write.
_DECIDE = ("ProtectSystem", "ProtectHome", "PrivateTmp", "ReadOnlyPaths", "InaccessiblePaths", "TemporaryFileSystem")


def sandbox_settings(service: Service) -> list[tuple[str, tuple[str, ...]]]:
    """Lists what the drop-in adds to the template unit's sandbox: keys, and the words of their values."""
    settings: list[tuple[str, tuple[str, ...]]] = []
    if not service.confined:
        settings += [(key, (value,)) for key, value in LOGIN]
        if service.settings.user in ("root", "0"):
            settings.append(("CapabilityBoundingSet", ROOT))
    if service.confined and _names_tmp(service):
        settings.append(("PrivateTmp", ("no",)))
    if not service.own_user:
        # systemd would remove what other programs of that user share, too.
        settings.append(("RemoveIPC", ("no",)))
    paths = write_paths(service)
    if paths:
        settings.append(("ReadWritePaths", paths))
    return settings


def write_paths(service: Service) -> tuple[str, ...]:
    """Lists the paths of ReadWritePaths= in the unit: the conf's, and the working directory of a confined service."""
    directory = _writable_directory(service)
    # Where it is missing, that is what systemd says.
    return (*([f"-{directory}"] if directory else []), *service.settings.read_write_paths)


def needed_files(service: Service) -> tuple[str, ...]:
    """Lists the files and folders that the conf names and that must be there when the service starts."""
    settings, train, infer = service.settings, service.train(), service.infer()
    own: list[str | None] = [train.script] if train else []
    if infer:
        own += [infer.model, infer.handler, infer.tls_certificate, infer.tls_key]
    named = (settings.python, settings.working_directory, *own, *settings.read_write_paths)
    return tuple(dict.fromkeys(path for path in named if path and not path.startswith("-")))


def needed_mounts(service: Service) -> tuple[str, ...]:
    """Lists the paths whose mounts the service waits for."""
    # What Debian's own packages bring is there before any service.
    return tuple(path for path in needed_files(service) if not path.startswith("/usr/bin/"))


def _named_paths(service: Service) -> tuple[str, ...]:
    """Lists all paths that the conf names; also one that may be missing and without its mount would stay read-only."""
    optional = [path[1:] for path in service.settings.read_write_paths if path.startswith("-")]
    return (*needed_files(service), *optional)


def caches(service: Service) -> dict[str, str]:
    """Returns the variables of a service that cannot keep its caches in its user's home, or whose user has none."""
    if not service.confined:
        return {}
    folder = _own_folder(service, "/var/cache")
    variables = {
        "XDG_CACHE_HOME": folder,
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }
    return variables | {"HOME": folder} if service.own_user else variables


def explain_writing(service: Service) -> Reason:
    """Says where the service may write, and what opens more to it."""
    named = [path.removeprefix("-") for path in service.settings.read_write_paths]
    for key, value in service.directives:
        if key == "ReadWritePaths":
            named.append(value)
    by_hand = [f"Service.{key}={value}" for key, value in service.directives if key in _DECIDE]
    changed = f"; {' '.join(by_hand)} changes that" if by_hand else ""
    user = service.settings.user
    if not service.confined:
        beside = f", except {' '.join(named)}" if named else ""
        return Reason(
            "ReadWritePaths",
            f"wherever {user or 'its user'} may",
            f"as at a login; but {', '.join(SYSTEM_FOLDERS)} are read-only{beside}{changed}",
        )
    folders = [_own_folder(service, "/var/lib"), _own_folder(service, "/var/cache")]
    directory = _writable_directory(service)
    who = "the user torchpar" if service.own_user else f"an inference service, also of {user},"
    tmp = "/tmp" if _names_tmp(service) else "a /tmp of its own"
    more = "User= or ReadWritePaths= opens more" if service.train() else "ReadWritePaths= opens more"
    return Reason(
        "ReadWritePaths",
        " ".join(map(shlex.quote, [*folders, *([directory] if directory else []), *named])),
        f'{who} writes there and in {tmp}; anywhere else it meets "Read-only file system", and {more}'
        + changed,
    )


def _writable_directory(service: Service) -> str | None:
    """Returns WorkingDirectory= where it has to be opened to the service; by that alone no folder of the system is."""
    directory = service.settings.working_directory
    if not service.confined or directory is None:
        return None
    path = simple_path(directory)
    of_system = path == "/" or any(f"{path}/".startswith(f"{folder}/") for folder in _NO_WORK)
    return None if of_system else path


def _names_tmp(service: Service) -> bool:
    """Says whether the conf names a path below /tmp or /var/tmp, which the service then has in common with the host."""
    passed = [word for key, value in service.directives if key == "ReadWritePaths" for word in value.split()]
    paths = (*_named_paths(service), *(word.lstrip("-+") for word in passed))
    return any(f"{simple_path(path)}/".startswith(("/tmp/", "/var/tmp/")) for path in paths)


def _own_folder(service: Service, parent: str) -> str:
    return f"{parent}/torchpar/{service.kind.value}/{service.name}"
