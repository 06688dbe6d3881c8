"""See torch/__init__.py."""

from typing import Any


class ChildFailedError(Exception):
    def __init__(self, failures: Any) -> None:
        self.failures = failures

    def get_first_failure(self) -> Any:
        return next(iter(self.failures.items()))
