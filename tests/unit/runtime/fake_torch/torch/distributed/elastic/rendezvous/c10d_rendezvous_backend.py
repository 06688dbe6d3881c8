"""See torch/__init__.py. FAKE_TORCH=2.6 is built without libuv, as Debian's."""

import os
from typing import Any


class TCPStore:
    def __init__(self, host: str, port: int, use_libuv: bool = True, **named: Any) -> None:
        if use_libuv and os.environ.get("FAKE_TORCH") == "2.6":
            raise RuntimeError("use_libuv was requested but PyTorch was build without libuv support")
