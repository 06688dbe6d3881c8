"""Says in words which state a unit is in and why it failed: by systemd's properties, and the last words of its run."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from torchpar.contract.errors import ExitStatus, printable
from torchpar.contract.fallback import CPU_AFFINITY, NUMA_POLICY

# Exit codes of systemd's own, which say more than a number (systemd.exec(5)), and torchpar's.
EXIT_CODES = {
    64: "usage",
    78: "configuration",
    200: "its working directory cannot be entered",
    203: "its program cannot be run",
    CPU_AFFINITY: "its CPUs cannot be set (CPU affinity)",
    205: "its limits cannot be set",
    208: "its standard input cannot be opened",
    209: "its standard output cannot be opened",
    210: "its root directory cannot be entered",
    216: "its group does not exist",
    217: "its user does not exist",
    218: "its capabilities cannot be set",
    222: "its standard error cannot be opened",
    225: "its network namespace cannot be entered",
    226: "its sandbox cannot be set up",
    228: "its system call filter cannot be set",
    229: "its SELinux context cannot be set",
    231: "its AppArmor profile cannot be set",
    238: "its state directory cannot be made",
    239: "its cache directory cannot be made",
    240: "its logs directory cannot be made",
    NUMA_POLICY: "its memory policy cannot be set (NUMA policy)",
    243: "its TLS certificate or key cannot be read (credentials)",
}

# Service results that no exit status tells (systemd.service(5) and systemd.exec(5), $SERVICE_RESULT).
_RESULTS = {
    "oom-kill": "killed for want of memory",
    "timeout": "it took too long to start or stop",
    "watchdog": "it made no progress (watchdog)",
    "start-limit-hit": "it was started too often; to try again: systemctl reset-failed",
    "resources": "systemd could not set it up (resources)",
    "protocol": "it ended before it was ready",
}

# The guard has refused the start, and says more in the journal of the service; or it has failed itself.
_REFUSED = "what systemd would open for it is not root's alone, or no file"
_NOT_LOOKED_AT = "what systemd would open for it could not be looked at"

# CLD_KILLED and CLD_DUMPED: the status of a process is the number of a signal then (waitid(2)).
_BY_SIGNAL = (2, 3)
_MOST_SAID = 300

# A rank's lines may begin with its number: "[rank0]: ", "[default0]:".
_RANK = re.compile(r"\[[A-Za-z]*\d+\]:? ?")
# systemd's own words on a start. The last of them names a program, which has no part in it.
_START = re.compile(r"torchpar-\S+\.service: (.+)")
_STEP = re.compile(r"Failed at step [A-Z_]+ spawning (.+?): (.+)")
# What is started after a job: why it could not be is no reason for what the job has come to.
_AFTERWARDS = ("/usr/lib/torchpar/stop", "/usr/lib/torchpar/stopped")
_TRACEBACK = "Traceback (most recent call last):"
# The launcher's own, which says no more than that a rank had one.
_LAUNCHER = "torch.distributed.elastic.multiprocessing.errors."


def state_of(properties: Mapping[str, Any]) -> str:
    """Says the state of a unit in a word: systemd's, but "running", "stopped", "masked" and "restarting"."""
    state = str(properties["ActiveState"])
    if state == "activating" and properties["SubState"] == "auto-restart":
        return "restarting"
    if state == "inactive" and properties.get("LoadState") == "masked":
        return "masked"
    return {"active": "running", "inactive": "stopped"}.get(state, state)


def why_failed(properties: Mapping[str, Any]) -> str:
    """Says why the last run of a unit failed: "exit status 3", "killed by SIGKILL", or systemd's reason in words."""
    result = str(properties.get("Result", ""))
    if result in _RESULTS:
        return _RESULTS[result]
    code, status = _last_exit(properties)
    if code in _BY_SIGNAL:
        return f"killed by {signal_name(status)}"
    if not status:
        return result or "unknown"
    # A launcher of several ranks ends as a shell does where a signal ended one of them.
    by = f" ({signal_name(status - 128)})" if status - 128 in list(signal.Signals) else ""
    return EXIT_CODES.get(status, f"exit status {status}{by}")


def misplaced_by(properties: Mapping[str, Any]) -> int | None:
    """Returns the status of a failed start that could not get its CPUs (215) or memory policy (242); None of others.

    A job may end with these numbers too, as by sys.exit(-41): one that was active in its last run had its place. An
    inference service is not active before it is ready, but its first process never ends so; see serve/supervisor/.
    """
    if properties.get("ActiveState") != "failed" or properties.get("Result") != "exit-code":
        return None
    # Type=exec: a service is active once its program is executed. It is of the last run if that had begun before.
    active = properties.get("ActiveEnterTimestampMonotonic")
    if active and active >= properties.get("InactiveExitTimestampMonotonic", 0):
        return None
    _, status = _last_exit(properties)
    return status if status in (CPU_AFFINITY, NUMA_POLICY) else None


def why_refused(guard: str, properties: Mapping[str, Any]) -> str:
    """Says why a guard, which has failed, has kept a service from starting, and how it is done with without a start."""
    is_refused = _last_exit(properties)[1] == ExitStatus.CONFIG
    why = _REFUSED if is_refused else f"{_NOT_LOOKED_AT}: {why_failed(properties)}"
    return f"{why} (to forget that: systemctl reset-failed {guard})"


def says_all(why: str) -> bool:
    """Says whether the reason came from outside the job, which knew nothing of it: its last line is no part of it."""
    outside = (*_RESULTS.values(), "killed by SIGKILL", "killed by SIGTERM")
    return why in outside or why.startswith((_REFUSED, _NOT_LOOKED_AT))


def _last_exit(properties: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the code and the status of the process that ended the last run; see waitid(2)."""
    code, status = properties.get("ExecMainCode", 1), properties.get("ExecMainStatus", 0)
    if not properties.get("ExecMainPID"):
        code = status = 0
    for command in properties.get("ExecStartPre", []):
        # (path, arguments, ignore, start, ..., pid, code, status): a failed one never lets the main process start.
        if command[-1]:
            code, status = command[-2:]
    return code, status


def signal_name(number: int) -> str:
    """Returns the name of a signal: "SIGKILL"; "signal 40" for one that has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_last_words(lines: Sequence[str]) -> str | None:
    """Finds the line that says why a run failed: that of its last exception, else its last one; None without any.

    `lines` are what its processes wrote last, in their order. What a job says is cut to one line that can be shown.
    """
    exceptions, last, inside, of_start = [], "", False, ""
    for line in lines:
        text = _RANK.sub("", line, count=1) if line.startswith("[") else line
        if not text.strip():
            continue
        if start := _START.fullmatch(text):
            step = _STEP.fullmatch(start[1])
            if step and not (last and step[1] in _AFTERWARDS):
                last = of_start or step[2]
            of_start = "" if step else start[1]
            continue
        last, of_start = text, ""
        if text.startswith(_TRACEBACK):
            inside = True
        elif inside and not text[0].isspace():
            inside = False
            exceptions.append(text)
    own = [text for text in exceptions if not text.startswith(_LAUNCHER)]
    found = own[-1] if own else of_start or last
    return printable(found.strip(), _MOST_SAID) or None
