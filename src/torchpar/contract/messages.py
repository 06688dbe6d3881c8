"""The kinds of what is wrong, each with the MESSAGE_ID that torchpard's line has in the journal.

`journalctl --catalog` adds what to do, from systemd/torchpar.catalog; `journalctl MESSAGE_ID=...` finds all of a kind.
"""

from __future__ import annotations

MESSAGE_IDS = {
    "failure": "8c4a3185f92f41f09f56486999929dcd",
    "crash-loop": "a959ee6d832446228bda5aed2a63b3ec",
    "overlap": "807035fc02bb4a14ba7693edfbbb49cd",
    "masked": "bfa41f64598c48938e535810e4b87f06",
    "enabled": "7b3729132f5d43bcaee433a6d89c7332",
    "override": "e211a7d577974ac493f379f73192bc3a",
    "drift": "f2f5d45abdf54f6abd94776f675b2e74",
    "fallback": "5f0b8a3bb0a54a0f8c3b5a4a1c9c1e6d",
    "outdated": "a3c48482f7bd4ea8b39b700b5b3ab089",
    "out-of-force": "9208e498381f4b3c8d73d7f8c8c17a5f",
    "conf": "5cce7aaeaf4f4f1687f5ce3e4a1e81c9",
    "host": "62eebeddc24b49dfbaba1eb7af977c83",
    "store": "6828158f23c44c0d9c3132e81c245b01",
}
# Changes with each look, so it is shown and not logged.
SHOWN_ONLY = ("hang",)


def trouble(what: str, text: str) -> dict[str, str]:
    """Makes one thing that is wrong, as JSON data: its kind, and a sentence, or the clause behind a unit's name."""
    assert what in MESSAGE_IDS or what in SHOWN_ONLY
    return {"what": what, "text": text}
