"""See torch/__init__.py. What takes torch's half a minute, from SIGTERM to SIGKILL, takes this one no time at all."""

import os
import signal
import subprocess
import types


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


class SubprocessContext:
    def __init__(self, command: list[str], environment: dict[str, str], count: int) -> None:
        self.subprocess_handlers = {
            rank: types.SimpleNamespace(
                proc=subprocess.Popen(
                    command,
                    env={**os.environ, **environment, "LOCAL_RANK": str(rank), "RANK": str(rank)},
                    start_new_session=True,
                )
            )
            for rank in range(count)
        }

    def close(self) -> None:
        ranks = [handler.proc for handler in self.subprocess_handlers.values()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for rank in ranks:
                if rank.poll() is None:
                    os.killpg(rank.pid, number)
        for rank in ranks:
            rank.wait()
