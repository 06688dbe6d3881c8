"""Chromium without a window, driven through its debugging pipe: messages of JSON, each ended by a zero byte."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Browser:
    """One page."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._numbers = itertools.count(1)
        self._session = ""
        self._rest = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol; events are passed over."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._read, 1 << 16)
                assert piece, "Chromium has ended"
                self._rest += piece
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's too."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go there, and wait until all is loaded."""
        self.call("Page.navigate", url=url)
        wait = "new Promise(done => { const look = () => document.readyState === 'complete'"
        self.evaluate(wait + " && location.href !== 'about:blank' ? done(1) : setTimeout(look, 20); look(); })")

    def picture(self, path: Path) -> None:
        """Save what is to be seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(program: str, home: Path) -> Iterator[Browser]:
    """Start Chromium, and end it."""
    to_it, write = os.pipe()
    read, from_it = os.pipe()
    # It reads commands from descriptor 3 and writes to 4.
    command = (
        f'exec "$0" --headless --no-sandbox --disable-gpu --user-data-dir="$1" --window-size=1000,900'
        f" --remote-debugging-pipe 3<&{to_it} 4>&{from_it}"
    )
    process = subprocess.Popen(
        ["bash", "-c", command, program, str(home)], pass_fds=(to_it, from_it), stderr=subprocess.DEVNULL
    )
    os.close(to_it)
    os.close(from_it)
    try:
        yield Browser(write, read)
    finally:
        process.terminate()
        process.wait(200)
        os.close(write)
        os.close(read)
