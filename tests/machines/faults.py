"""Runs torchpar with a fault at each system call that changes its store or /run, in a machine; see test_faults.py.

    python3 faults.py confirm-within|rollback|confirm|apply [all]

It counts the calls of one whole run with strace, then runs the command again for each: with an error at that call, or
killed at it. `all` takes every call with every error; else of calls that do the same the first is taken, with one error
in turns. After each it checks what is in force, what was said, and what the next command leaves. It prints a line for
each fault, and what is wrong as lines that begin with "WRONG".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torchpar.generations.drift import find_drift
from torchpar.generations.store import Store
from torchpar.host.systemd import loaded_units

STORE = Store()
UNIT = "torchpar-train@a.service"
CALLS = "write,rename,renameat,renameat2,fsync,fdatasync,link,linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat"
CALLS += ",rmdir,fchmod,fchmodat,fchown,fchownat,openat"
ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT")
PLACES = ("/var/lib/torchpar", "/run/torchpar-verify")

COMMANDS = {
    "apply": ["apply"],
    "confirm-within": ["apply", "--confirm-within", "600"],
    "confirm": ["confirm"],
}
# Of strace(1): what it prints is for the run that counts.
STRACE = ["strace", "-qq", "-e", "signal=none", "-o", "/run/trace"]


@dataclass(frozen=True)
class Call:
    """One call of a run: its name, which of that name it is, and the path; of openat(2) it is the first of its path."""

    name: str
    number: int
    path: str

    @property
    def kind(self) -> tuple[str, str]:
        """What calls that do the same have in common: a file of a generation is like another."""
        path = re.sub(r"verify-[0-9]+.*", "verify", self.path)
        path = re.sub(r"(generations/\.[0-9]+\.new)/.+", r"\1/...", path)
        return self.name, re.sub(r"[0-9]+", "N", path)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def good(*argv: str) -> str:
    done = run(*argv)
    if done.returncode:
        wrong(f"{' '.join(argv)}: {done.returncode}: {done.stderr}")
    return done.stdout.strip()


def wrong(what: str) -> None:
    print(f"WRONG {what}", flush=True)


serial = 0


def edit() -> None:
    """A conf that differs from all before."""
    global serial
    serial += 1
    with open("/etc/torchpar.conf", "w", encoding="utf-8") as file:
        file.write(f"[Train a]\nScript=/srv/job.py\nEnabled=yes\nCPUs=1-1\nMemoryMax={1000 + serial}M\n")


def prepare(command: str) -> list[str]:
    """Make the host as the command finds it; returns the command's words."""
    if command == "confirm":
        edit()
        good("torchpar", *COMMANDS["confirm-within"])
    elif command == "rollback":
        others = [generation.number for generation in STORE.history() if generation != STORE.active()]
        return ["torchpar", "rollback", str(others[0])]
    edit()
    return ["torchpar", *COMMANDS[command]]


def trace(command: str) -> list[Call]:
    """The calls of a whole run, in their order."""
    good(*STRACE, "-y", f"--trace={CALLS}", *prepare(command))
    calls, numbers = [], Counter[str]()
    with open("/run/trace", encoding="utf-8", errors="replace") as file:
        for line in file:
            name = line.partition("(")[0]
            numbers[name] += 1
            path = next((word for word in re.findall(r'[<"]([^">]*)[">]', line) if word.startswith(PLACES)), None)
            if path and (name != "openat" or "O_CREAT" in line):
                calls.append(Call(name, numbers[name], path))
    settle()
    return calls


def active() -> int:
    found = STORE.active()
    assert found
    found.read()
    return found.number


def planned(number: int) -> str:
    """The memory limit that tells generations apart, in bytes."""
    (text,) = (text for path, text in STORE.generation(number).read().files.items() if path.startswith(UNIT))
    found = re.search(r"^MemoryMax=(.+)$", text, flags=re.M)
    assert found
    return str(int(found[1].removesuffix("M")) * 2**20 if found[1].endswith("M") else int(found[1]))


def held() -> dict[str, str]:
    text = good("systemctl", "show", "-p", "MemoryMax", "-p", "AllowedCPUs", "-p", "MainPID", UNIT)
    return dict(line.split("=", 1) for line in text.splitlines())


def settle() -> None:
    """The next command: it does all, and leaves nothing."""
    found = STORE.active()
    if found and STORE.unconfirmed(found):
        good("torchpar", "confirm")
    good("torchpar", "apply")
    if held()["MemoryMax"] != planned(active()):
        wrong("the next apply did not bring systemd to what is active")
    check_leftovers()


def check_leftovers() -> None:
    for drift in find_drift(STORE, loaded_units()):
        wrong(f"left over: {drift}")
    left = [name for name in os.listdir(STORE.generations) if not name.isdigit()]
    left += [name for name in os.listdir("/run") if "verify" in name]
    if left:
        wrong(f"left over: {left}")


def claim(said: str, number: int, old: int, is_held: int) -> str:
    """Check what an error says is true after it."""
    claims = {
        "nothing has changed": number == old == is_held,
        f"generation {number} is in force, but after a loss of power": number == is_held != old,
        f"generation {number} is in force, as before": number == old == is_held,
        f"generation {number} is not confirmed": number == old and bool(STORE.waiting()),
        f"generation {number} is confirmed, but": number == old and not STORE.waiting(),
    }
    made = [words for words in claims if words in said]
    if len(made) != 1 or not claims[made[0]]:
        wrong(f"said {said!r}, and {number} is active, {is_held} is held, {old} was in force")
    return made[0] if made else said


def try_fault(command: str, call: Call, fault: str) -> str:  # noqa: C901 - each outcome of a fault is told by itself
    """Run a command with a fault and check everything; returns what came of it."""
    target = prepare(command)
    old = active()
    waiting = STORE.waiting()
    before = held()
    options = ["-P", moved(call.path)] if call.name == "openat" else []
    number = 1 if call.name == "openat" else call.number
    inject = f"inject={call.name}:{fault}:when={number}"
    done = run(*STRACE, f"--trace={call.name}", *options, "-e", inject, *target)
    now = active()
    for generation in STORE.history():
        generation.read()
    after = held()
    if (after["AllowedCPUs"], after["MainPID"]) != (before["AllowedCPUs"], before["MainPID"]):
        wrong(f"the running job had {before} and has {after}")
    holds = {planned(number): number for number in (old, now)}.get(after["MemoryMax"], 0)
    if not holds:
        wrong(f"systemd holds {after['MemoryMax']}, neither {old} nor {now}")
    if fault == "signal=KILL":
        if done.returncode != -9:
            wrong(f"it was not killed: {done.returncode} {done.stderr}")
        waits = [waits for waits in STORE.waiting() if waits.back == old] if now != old else []
        if command == "confirm-within" and now != old and not waits:
            wrong("there is no way back")
        if waits and run("systemctl", "is-active", "torchpar-way-back").returncode:
            wrong("nobody goes the way back")
        good("systemctl", "daemon-reload")
        if held()["MemoryMax"] != planned(now):
            wrong("a reload does not bring systemd to what is active")
        outcome = "killed"
    elif done.returncode == 0:
        # What only tidies up may fail.
        outcome = "done"
        if command != "confirm" and (now == old or holds != now):
            wrong("it said that it had done it")
    else:
        outcome = claim(done.stderr, now, old, holds)
        if done.returncode != 1:
            wrong(f"exit status {done.returncode}: {done.stderr}")
    if outcome == "nothing has changed" and not waiting:
        check_leftovers()
    else:
        settle()
    return f"{'old' if now == old else 'new'}: {re.sub('[0-9]+', 'N', outcome)}"


def moved(path: str) -> str:
    """The path that a call has in the next run, which makes a generation of the next number."""
    following = str(max(generation.number for generation in STORE.history()) + 1)
    return re.sub(r"(generations/\.?)[0-9]+", rf"\g<1>{following}", path)


def faults(calls: list[Call], everything: bool) -> Iterator[tuple[Call, str]]:
    """All, or of calls that do the same the first: where it decides what is in force an error and a kill, else one of
    them for every third."""
    seen: Counter[tuple[str, str]] = Counter()
    for number, call in enumerate(calls):
        seen[call.kind] += 1
        # The file of a process of another number cannot be named before.
        if call.name == "openat" and "verify" in call.path:
            continue
        # The directory is synced before the flip and after it, which is not the same.
        if not everything and seen[call.kind] > (2 if call.name == "fsync" else 1):
            continue
        errors = [f"error={error}" for error in ERRORS]
        decides = call.name == "rename" or any(part in call.path for part in (".active.", ".unconfirmed"))
        if everything:
            yield from ((call, fault) for fault in (*errors, "signal=KILL"))
        elif decides or (call.name == "fsync" and "/." not in call.path and "verify" not in call.path):
            yield from ((call, fault) for fault in (errors[number % len(errors)], "signal=KILL"))
        elif number % 3 == 0:
            yield call, (*errors, "signal=KILL")[number % 5]


def main() -> None:
    command = sys.argv[1]
    everything = sys.argv[2:] == ["all"]
    calls = trace(command)
    outcomes: Counter[str] = Counter()
    for call, fault in faults(calls, everything):
        outcome = try_fault(command, call, fault)
        outcomes[outcome] += 1
        print(f"{command}: {call.name} {call.number} {call.path} {fault}: {outcome}", flush=True)
    print(f"{command}: {len(calls)} calls, {outcomes.total()} faults: {dict(outcomes)}")


if __name__ == "__main__":
    main()
