"""Refuses to change the host for anybody but root."""

from __future__ import annotations

import os

from torchpar.contract.errors import NotPermittedError


def require_root(what: str) -> None:
    """Raises NotPermittedError unless this process is root's."""
    if os.geteuid() != 0:
        raise NotPermittedError(f"{what} changes this host, so it needs root; try: sudo {what}")
