"""Tells what the job does with accelerators, by its own torch: nothing else asks torch.cuda and its like."""

from __future__ import annotations

from typing import Any

# torch.cuda stands for ROCm too.
_KINDS = ("cuda", "xpu")


def visible(torch: Any) -> int:
    """Counts the accelerators that this process sees. That may start the driver: then it must not fork any more."""
    return int(torch.cuda.device_count())


def take(torch: Any, device: Any) -> None:
    """Makes a device this process's default of its kind; nothing for the CPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def finish(torch: Any, device: Any) -> None:
    """Waits until a device has done what it was given; the CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_use(torch: Any) -> bool:
    """Says whether this process has begun to use an accelerator.

    It does not ask whether there is one: `is_available()` may itself start the driver, which a forked loader worker
    could then not use any more.
    """
    return any(_asked(torch, kind, "is_initialized") for kind in _KINDS)


def _asked(torch: Any, kind: str, question: str) -> bool:
    ask = getattr(getattr(torch, kind, None), question, None)
    return bool(ask and ask())
