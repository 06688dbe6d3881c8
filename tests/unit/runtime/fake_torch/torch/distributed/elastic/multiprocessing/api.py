"""See torch/__init__.py."""

import os
import signal


class SignalException(Exception):
    def __init__(self, msg: str, sigval: signal.Signals) -> None:
        super().__init__(msg)
        self.sigval = sigval


class Std(int):
    NONE: "Std"

    @classmethod
    def from_str(cls, text: str) -> "Std | None":
        return None if os.environ.get("FAKE_TORCH") == "1.13" else Std(int(text))


Std.NONE = Std(0)
