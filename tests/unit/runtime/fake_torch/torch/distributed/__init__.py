"""See torch/__init__.py."""

import os


def is_available() -> bool:
    return os.environ.get("FAKE_TORCH") != "without distributed"
