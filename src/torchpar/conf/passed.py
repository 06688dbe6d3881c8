"""The directives of systemd that Service.KEY= passes on to a unit, and no others; torchpar.conf(5) lists them.

Left out is what torchpar decides (what runs, as whom, where, how it stops), what would run as somebody else, and what
has root open, mount or give away something whose name torchpar cannot look at before.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator

from torchpar.conf.directives import SINCE
from torchpar.conf.syntax import hint
from torchpar.contract.errors import printable
from torchpar.contract.paths import CERTIFICATE, KEY

# What they are for, and their names.
GROUPS: tuple[tuple[str, str], ...] = (
    (
        "Restarts and time",
        """
        RestartForceExitStatus RestartMaxDelaySec RestartPreventExitStatus RestartSec RestartSteps RuntimeMaxSec
        RuntimeRandomizedExtraSec StartLimitBurst StartLimitInterval SuccessExitStatus TimeoutStartSec WatchdogSec
        """,
    ),
    (
        "Memory, input and output, tasks",
        """
        IOAccounting IODeviceLatencyTargetSec IODeviceWeight IOReadBandwidthMax IOReadIOPSMax IOSchedulingClass
        IOSchedulingPriority IOWeight IOWriteBandwidthMax IOWriteIOPSMax ManagedOOMMemoryPressure
        ManagedOOMMemoryPressureDurationSec ManagedOOMMemoryPressureLimit ManagedOOMPreference ManagedOOMSwap
        MemoryAccounting MemoryKSM MemoryLow MemoryMin MemorySwapMax MemoryZSwapMax MemoryZSwapWriteback Nice
        OOMScoreAdjust TasksAccounting TasksMax TimerSlackNSec
        """,
    ),
    (
        "Limits",
        """
        CoredumpFilter LimitAS LimitCORE LimitCPU LimitDATA LimitFSIZE LimitLOCKS LimitMEMLOCK LimitMSGQUEUE LimitNICE
        LimitNOFILE LimitNPROC LimitRSS LimitRTPRIO LimitRTTIME LimitSIGPENDING LimitSTACK
        """,
    ),
    (
        "Network",
        """
        IPAccounting IPAddressAllow IPAddressDeny NetworkNamespacePath PrivateNetwork RestrictAddressFamilies
        RestrictNetworkInterfaces SocketBindAllow SocketBindDeny
        """,
    ),
    (
        "Journal, input and output of programs",
        """
        LogExtraFields LogFilterPatterns LogLevelMax LogNamespace LogRateLimitBurst LogRateLimitIntervalSec
        StandardError StandardInput StandardInputData StandardInputText StandardOutput SyslogFacility
        SyslogIdentifier SyslogLevel
        """,
    ),
    (
        "Variables and credentials",
        """
        EnvironmentFile LoadCredential LoadCredentialEncrypted OpenFile PassEnvironment SetCredential
        SetCredentialEncrypted
        """,
    ),
    (
        "Files that it sees",
        """
        BindLogSockets BindPaths BindReadOnlyPaths CacheDirectoryMode ExecPaths InaccessiblePaths LogsDirectory
        LogsDirectoryMode MountAPIVFS NoExecPaths PrivateDevices PrivateMounts PrivateTmp ProcSubset ProtectHome
        ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory RootImage StateDirectoryMode
        TemporaryFileSystem UMask
        """,
    ),
    (
        "Rights",
        """
        AmbientCapabilities AppArmorProfile CapabilityBoundingSet DeviceAllow DevicePolicy KeyringMode LockPersonality
        MemoryDenyWriteExecute NoNewPrivileges PrivateIPC PrivateUsers ProtectClock ProtectControlGroups
        ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables RemoveIPC RestrictFileSystems
        RestrictNamespaces RestrictRealtime RestrictSUIDSGID SELinuxContext SupplementaryGroups SystemCallArchitectures
        SystemCallErrorNumber SystemCallFilter SystemCallLog
        """,
    ),
)

PASSED = frozenset(name for _, names in GROUPS for name in names.split())

# Directives that torchpar renders itself, and the key that decides them.
RENDERED = {
    "CPUAffinity": "CPUs",
    "AllowedCPUs": "CPUs",
    "AllowedMemoryNodes": "NUMAMask",
    "NUMAPolicy": "NUMAPolicy",
    "NUMAMask": "NUMAMask",
    "ExecStart": "Script",
    "Environment": "Environment",
    "User": "User",
    "Group": "Group",
    "WorkingDirectory": "WorkingDirectory",
    "MemoryMax": "MemoryMax",
    "MemoryHigh": "MemoryHigh",
    "CPUWeight": "CPUWeight",
    "Restart": "Restart",
    "TimeoutStopSec": "CheckpointGrace= or DrainTimeout",
    "TimeoutSec": "CheckpointGrace= or DrainTimeout= for a stop, Service.TimeoutStartSec",
}

# Directives that are the administrator's choice, with what the choice costs.
_DOUBTFUL = {
    "RootDirectory": "torchpar's launcher, /usr/lib/torchpar, and the interpreter must be in there too",
    "RootImage": "torchpar's launcher, /usr/lib/torchpar, and the interpreter must be in there too",
}

# Of those that are not passed on, why the ones are not that people ask for.
_WHY = {
    "Type": "it decides when a service has started, which systemctl start, torchpar status and the stop rely on",
    "KillMode": "it would kill processes that still save, or leave some behind on CPUs that others get next",
    "RemainAfterExit": "a job that has ended would be called running, and would keep others of its Slot= away",
    "Slice": "outside torchpar.slice the limits that torchpar plans with may not be the service's",
    "SyslogLevelPrefix": "without it what torchpar says in a job would show its priority as <6>",
    "DynamicUser": "a user that is made up for each start can own neither scripts nor checkpoints; use User=",
}
# Those of capabilities(7): systemd drops any other word without saying so.
_CAPABILITIES = frozenset(
    f"CAP_{name}"
    for name in """
        AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH
        FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
        NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT
        SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
    """.split()
)
_PATTERNS = (
    ("Exec", "torchpar decides what a service runs, and as whom; do it in the script, or in a unit of your own"),
    ("CPU", "it would take CPUs from what torchpar plans with; use CPUs="),
    ("Startup", "it would take from what torchpar plans with while the host boots"),
)


def judge_directive(name: str, text: str) -> tuple[str | None, str | None]:
    """Returns an error in a directive of Service.KEY=, and a warning about it; each may be None."""
    if name in RENDERED:
        return f"torchpar sets {name}= itself; use {RENDERED[name]}=", None
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]+", name):
        return f"is not Service.KEY of systemd{hint(name, PASSED)}", None
    if name not in SINCE:
        return f"systemd knows no {name}= in [Service]{hint(name, PASSED)}", None
    return judge(name, text), _DOUBTFUL.get(name) if text else None


def judge(name: str, text: str) -> str | None:
    """Returns the reason why a directive that systemd knows is not passed on; None where it is."""
    if name not in PASSED:
        why = _WHY.get(name) or next((why for start, why in _PATTERNS if name.startswith(start)), None)
        return why or "torchpar does not pass it on, see torchpar.conf(5); systemctl edit of the unit can set it"
    if name == "LogsDirectory" and not all(_is_own_folder(word) for word in text.split()):
        return "systemd gives the folder to the service's user, so it must be one of torchpar/, as torchpar/train/NAME"
    try:
        list(opened(name, text, ""))
    except ValueError as error:
        return str(error)
    return None


def find_dropped(name: str, text: str) -> str | None:
    """Finds a word of a directive that systemd drops without saying so, and says why it does; None without any."""
    if name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        for word in re.findall(r"[^ \t\"']+", text.removeprefix("~")):
            if word.upper() not in _CAPABILITIES and not (word.isascii() and word.isdigit() and int(word[:9]) < 64):
                return f"'{printable(word, 60)}' is no capability, see capabilities(7); between several stand blanks"
    return None


def opened(name: str, text: str, unit: str) -> Iterator[str]:
    """Yields the paths that systemd opens as root for a directive of this unit.

    Those with a / at the end may be folders. Raises ValueError where that cannot be known.
    """
    return _OPENED[name](text, unit) if name in OPENING and text else iter(())


def _of_stream(text: str, unit: str) -> Iterator[str]:
    kind, colon, path = text.partition(":")
    if colon and kind in ("file", "append", "truncate"):
        yield _path(path, unit)
    elif text not in ("null", "inherit", "journal", "kmsg", "data"):
        raise ValueError("it can be null, inherit, journal, kmsg, data, file:PATH, append:PATH or truncate:PATH")


def _of_environment(text: str, unit: str) -> Iterator[str]:
    if re.search(r"[*?[]", text):
        raise ValueError("name each file: what *, ? and [ stand for is known only when systemd opens them")
    yield _path(text.removeprefix("-"), unit)


def _of_credential(text: str, unit: str) -> Iterator[str]:
    credential, _, path = text.partition(":")
    if credential in (CERTIFICATE, KEY):
        raise ValueError("use TLSCertificate= and TLSKey=")
    if path.startswith("/"):  # else systemd looks in its own folders, which are root's
        yield _path(path, unit)
    elif not re.fullmatch(r"[A-Za-z0-9_.%-]*", path):
        raise ValueError("is neither an absolute path nor the name of a file in /etc/credstore")


def _of_open_file(text: str, unit: str) -> Iterator[str]:
    yield _path(text.partition(":")[0], unit)


def _of_file(text: str, unit: str) -> Iterator[str]:
    yield _path(text, unit)


def _of_folder(text: str, unit: str) -> Iterator[str]:
    yield _folder(text, unit)


def _of_binds(text: str, unit: str) -> Iterator[str]:
    for word in text.split():
        source, _, rest = word.removeprefix("-").partition(":")
        yield _folder(source, unit)
        if target := rest.partition(":")[0]:
            yield _folder(target, unit)


def _of_mounts(text: str, unit: str) -> Iterator[str]:
    for word in text.split():
        yield _folder(word.partition(":")[0], unit)


# The directives with paths that systemd opens as root, and what reads them from a value.
_OPENED: dict[str, Callable[[str, str], Iterator[str]]] = {
    "BindPaths": _of_binds,
    "BindReadOnlyPaths": _of_binds,
    "EnvironmentFile": _of_environment,
    "LoadCredential": _of_credential,
    "LoadCredentialEncrypted": _of_credential,
    "NetworkNamespacePath": _of_file,
    "OpenFile": _of_open_file,
    "RootDirectory": _of_folder,
    "RootImage": _of_file,
    "StandardError": _of_stream,
    "StandardInput": _of_stream,
    "StandardOutput": _of_stream,
    "TemporaryFileSystem": _of_mounts,
}
OPENING = frozenset(_OPENED)
# Those that systemd opens itself, before it has a process for the service: with each start of it all of systemd waits.
OPENED_BY_SYSTEMD = frozenset({"EnvironmentFile", "OpenFile"})


def needed(name: str, text: str, unit: str) -> Iterator[str]:
    """Yields the opened paths that have to be there at a start; of a file that systemd makes, its folder.

    Raises ValueError as opened() does.
    """
    for word in text.split() if name in ("BindPaths", "BindReadOnlyPaths") else [text]:
        options = word.rpartition(":")[2].split(",") if name == "OpenFile" else ()
        if not word.startswith("-") and "graceful" not in options and name != "TemporaryFileSystem":
            # The second of two is where the first is shown, and is made.
            for path in itertools.islice(opened(name, word, unit), 1):
                yield posixpath.dirname(path) if name in ("StandardOutput", "StandardError") else path.rstrip("/")


def _folder(path: str, unit: str) -> str:
    return f"{_path(path, unit).rstrip('/')}/"


def _path(path: str, unit: str) -> str:
    """Returns a path with what its specifiers stand for; see "Specifiers" in systemd.unit(5)."""
    if not path.startswith("/"):
        raise ValueError(f"'{path:.60}' is not an absolute path")
    if re.search(r"[\\\"']", path):
        raise ValueError("a path that systemd opens is written without quotes and backslashes")
    known = _specifiers(unit)
    for specifier in re.findall(r"%.?", path):
        if specifier not in known:
            raise ValueError(f"{specifier} cannot be in a path that systemd opens; %i, %n, %N, %p and %% can")
    return _expand(path, unit)


def expanded(name: str, text: str, unit: str) -> str:
    """Returns a directive as a transient unit must have it, in which systemd replaces no specifiers: those are
    replaced that a path may have which systemd opens."""
    return _expand(text, unit) if name in OPENING else text


def _expand(text: str, unit: str) -> str:
    known = _specifiers(unit)
    return re.sub(r"%.?", lambda match: known.get(match[0], match[0]), text)


def _specifiers(unit: str) -> dict[str, str]:
    name = unit.removesuffix(".service")
    prefix, _, instance = name.partition("@")
    return {"%%": "%", "%i": instance, "%n": unit, "%N": name, "%p": prefix}


def _is_own_folder(word: str) -> bool:
    return re.fullmatch(r"torchpar(/[A-Za-z0-9_%-][A-Za-z0-9_.%-]*)+", word) is not None
