"""See torch/__init__.py."""

import os


class Std(int):
    NONE: "Std"

    @classmethod
    def from_str(cls, text: str) -> "Std | None":
        return None if os.environ.get("FAKE_TORCH") == "1.13" else Std(int(text))


Std.NONE = Std(0)
