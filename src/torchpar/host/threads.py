"""Reads the threads of a unit's processes: the CPUs that each may use, and the time that it has computed.

A job may have as many threads as its TasksMax= lets it, and give each a set of CPUs of its own. So threads with the
same set share one value, and both threads and sets are counted.
"""

from __future__ import annotations

import contextlib
import os
import re

from torchpar.contract.cpulist import CpuSet
from torchpar.host.proc import ProcReader, TooLongError

# Of one unit. Eight ranks, each with 64 loader workers of ten threads, have 5,000.
MOST_THREADS = 2**14
# CPUs in all the different sets of one unit, each set with so many more for itself: some ten MiB.
_MOST_CPUS = 2**17
_SET = 8

_RUNNABLE = re.compile(rb"^State:\s*R", re.MULTILINE)
_ALLOWED = re.compile(rb"^Cpus_allowed_list:\s*(\S+)", re.MULTILINE)


class ThreadReader:
    """Reads the threads of one unit. Raises TooLongError for more than can be kept, TooLateError and OSError.

    `runnable` are the threads that ran or waited for a CPU, of the process that was read last.
    """

    def __init__(self, proc: ProcReader) -> None:
        self.runnable = 0
        self._proc = proc
        self._threads_left = MOST_THREADS
        self._cpus_left = _MOST_CPUS
        self._sets: dict[bytes, CpuSet] = {}

    def read(self, pid: int) -> dict[int, CpuSet]:
        """Reads the allowed CPUs of each thread of a process."""
        threads = {}
        self.runnable = 0
        try:
            for tid in self._proc.numbers(f"{pid}/task"):
                status = self._proc.read(f"{pid}/task/{tid}/status")
                match = _ALLOWED.search(status)
                self.runnable += bool(_RUNNABLE.search(status))
                self._threads_left -= 1
                if self._threads_left < 0:
                    raise TooLongError
                if match:
                    threads[tid] = self._parse(match[1])
        except (FileNotFoundError, ProcessLookupError):
            # It, or one of its threads, has ended; what was read still counts.
            return threads
        return threads

    def _parse(self, text: bytes) -> CpuSet:
        if text not in self._sets:
            cpus = CpuSet.parse(text.decode())
            self._cpus_left -= len(cpus) + _SET
            if self._cpus_left < 0:
                raise TooLongError
            self._sets[text] = cpus
        return self._sets[text]


def read_cpu_seconds(proc: ProcReader, pid: int) -> dict[int, float]:
    """Reads the CPU time of each thread of a process, utime and stime of proc(5). Raises TooLateError."""
    seconds: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for tid in proc.numbers(f"{pid}/task"):
            if len(seconds) >= MOST_THREADS:
                break
            # The name before it may hold anything.
            fields = proc.read(f"{pid}/task/{tid}/stat").rpartition(b")")[2].split()
            if len(fields) > 12:
                seconds[tid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
