"""`serve.py reload`, which ExecReload= runs: asks the server that runs, waits, and says how it went.

A signal could not do that: `systemctl reload` would return before the models are loaded, and never fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Mapping
from typing import Callable

from torchpar.contract.errors import ExitStatus
from torchpar.contract.journal import Priority, say

_DONE = b"done"


def control_path(environ: Mapping[str, str]) -> str | None:
    """Returns the path of the service's Unix socket, in its RuntimeDirectory=; None where it has none."""
    directory = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return os.path.join(directory, "control") if directory else None


async def listen(path: str, reload: Callable[[], Awaitable[str]]) -> asyncio.AbstractServer:
    """Calls `reload` for whoever connects, and tells them what it returns: "" or what went wrong.

    Only the service's own user, and root, can connect.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wrong = await reload()
        writer.write(wrong.encode(errors="replace") or _DONE)
        writer.close()

    if os.path.exists(path):
        os.unlink(path)  # left by one that was killed
    mask = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(answer, path)
    finally:
        os.umask(mask)


def ask_to_reload(environ: Mapping[str, str]) -> int:
    """Has the server load its models again; returns an exit status."""
    path = control_path(environ)
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(path or "")
            answer = b""
            while piece := door.recv(4096):
                answer += piece
    except OSError as error:
        say(
            f"cannot ask the server to reload: {path or 'RUNTIME_DIRECTORY is not set'}: {error.strerror}",
            Priority.ERROR,
        )
        return ExitStatus.FAILED
    if answer == _DONE:
        return ExitStatus.DONE
    say(answer.decode(errors="replace") or "the server ended before it had loaded its models again")
    return ExitStatus.FAILED
