"""Finds out what the store of this torch is built with, by which processes of a job exchange their addresses."""

from __future__ import annotations

from typing import Any


def lacks_libuv(store: Any) -> bool:
    """Says whether a torch asks its TCPStore for libuv and is built without it, as that of Debian 13.

    Its torchrun, and init_process_group() in rank 0, then fail until they are told to do without (USE_LIBUV=0).
    """
    try:
        store("localhost", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        # Whatever else it is, the rendezvous will meet it too, and say so.
        return "libuv" in str(error)
    return False
