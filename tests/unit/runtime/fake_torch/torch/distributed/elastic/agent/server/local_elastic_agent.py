"""An agent that treats its ranks as torch's does: each a session of its own; one that fails is the end of all."""

import collections
import os
import signal
import time
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException, Std, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

State = collections.namedtuple("State", "name")
Result = collections.namedtuple("Result", "state failures")
Failure = collections.namedtuple("Failure", "pid exitcode")


def terminate(number: int, frame: Any) -> None:
    raise SignalException("ended", signal.Signals(number))


class LocalElasticAgent:
    def __init__(self, count: int, command: list[str], restarts: int) -> None:
        assert Std.from_str("0") is not None
        self.count, self.command, self.restarts = count, command, restarts
        self.starts = 0
        self._pcontext: SubprocessContext | None = None

    def start(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, terminate)
        if os.environ.get("RENDEZVOUS"):
            with open("waiting", "w", encoding="ascii"):
                pass
            time.sleep(600)
        self._start_workers(None)

    def _start_workers(self, group: Any) -> dict[int, int]:
        environment = {"MASTER_ADDR": "host.invalid", "TORCHELASTIC_RESTART_COUNT": str(self.starts)}
        self.starts += 1
        self._pcontext = SubprocessContext(self.command, environment, self.count)
        return {number: handler.proc.pid for number, handler in self._pcontext.subprocess_handlers.items()}

    def close(self) -> None:
        if self._pcontext:
            self._pcontext.close()

    def _exit_barrier(self) -> None:
        raise AssertionError("there is nobody to wait for")

    def _monitor_workers(self, group: Any) -> Result:
        assert self._pcontext
        ranks = {number: handler.proc for number, handler in self._pcontext.subprocess_handlers.items()}
        ended = {number: rank.poll() for number, rank in ranks.items()}
        if any(ended.values()):
            self.close()
            failures = {
                number: Failure(rank.pid, rank.returncode)
                for number, rank in sorted(ranks.items(), key=lambda item: not ended[item[0]])
                if rank.returncode
            }
            return Result(State("FAILED"), failures)
        return Result(State("HEALTHY" if None in ended.values() else "SUCCEEDED"), {})

    def run(self) -> None:
        try:
            self.start()
            while True:
                time.sleep(0.02)
                result = self._monitor_workers(None)
                if result.state.name == "SUCCEEDED":
                    return
                if result.state.name == "FAILED" and self.restarts:
                    self.restarts -= 1
                    self.start()
                elif result.state.name == "FAILED":
                    raise ChildFailedError(result.failures)
        finally:
            self.close()
