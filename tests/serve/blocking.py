"""The asynchronous clients of tritonclient with the methods of the others, so that one test serves both."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any


class Blocking:
    """A client of `module` (tritonclient.http.aio or tritonclient.grpc.aio), whose calls wait for their end."""

    def __init__(self, module: Any, address: str) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> Any:
            return module.InferenceServerClient(address)

        self._client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))
