"""What systemd says of a rendered unit, said of the conf's line that it was made from."""

from __future__ import annotations

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, SystemdError
from torchpar.generations.unit_check import check_units, in_conf
from torchpar.plan.plan import make_plan
from torchpar.units.drop_ins import drop_in_path, make_units

CONF = """\
[Train]
Service.DeviceAllow=/dev/a rw
[Train a]
Script=/a.py
MemoryMax=8G
Service.DeviceAllow=/dev/b rwz
Service.Nice=77
[Infer b]
Model=/m.pt
Listen=127.0.0.1:9000
"""

PLAN = make_plan(parse_config([ConfFile("/c", CONF)], make_host()), make_host())
FILES = make_units(PLAN).files
TRAIN = drop_in_path("torchpar-train@a.service")
SOCKET = drop_in_path("torchpar-infer@b.socket")


@pytest.mark.parametrize(
    ("path", "line", "where"),
    [
        (TRAIN, "Nice=77", "/c:7: [Train a] Service.Nice=77: "),
        (TRAIN, "DeviceAllow=/dev/b rwz", "/c:6: [Train a] Service.DeviceAllow=/dev/b rwz: "),
        (TRAIN, "DeviceAllow=/dev/a rw", "/c:2: [Train a] Service.DeviceAllow=/dev/a rw: "),
        (TRAIN, "MemoryMax=8G", "/c:5: [Train a] MemoryMax=8G: "),
        (TRAIN, "ExecStart=:/usr/bin/python3 /usr/lib/torchpar/run.py -- /a.py", "/c:4: [Train a] Script=:/usr/bin"),
        (SOCKET, "ListenStream=127.0.0.1:9000", "/c:10: [Infer b] Listen=127.0.0.1:9000"),
    ],
)
def test_a_line_of_a_drop_in_is_found_in_the_conf(path: str, line: str, where: str) -> None:
    """Each of several lines of one key, a default of all jobs, and keys that have another name in the unit."""
    number = FILES[path].split("\n").index(line) + 1
    told = str(in_conf(f"{path}:{number}: Failed to parse it, ignoring: x", PLAN, FILES))
    assert told.startswith(where) and told.endswith(": systemd says: Failed to parse it, ignoring: x")


@pytest.mark.parametrize(
    "said",
    [
        "torchpar-train@a.service: Unit configuration has fatal error",
        "Accepting user/group name 'x y', which does not match strict user/group name rules.",
        "/etc/systemd/system/torchpar-train@a.service.d/override.conf:3: Failed to parse it",
        f"{TRAIN}:9999: Failed to parse it",
        "",
    ],
)
def test_what_is_said_of_anything_else_stays_as_it_is(said: str) -> None:
    """An administrator's own drop-in is not the conf's."""
    assert in_conf(said, PLAN, FILES) is None


def test_a_default_of_all_services_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one line of the conf, whatever uses it; what else systemd says is shown as it is."""
    text = "[Train]\nService.Nice=77\n[Train a]\nScript=/a.py\n[Train b]\nScript=/b.py\n"
    plan = make_plan(parse_config([ConfFile("/c", text)], make_host()), make_host())
    files = make_units(plan).files
    said = [f"{path}:{text.split(chr(10)).index('Nice=77') + 1}: out of range" for path, text in files.items()]
    monkeypatch.setattr("torchpar.host.analyze.verify_units", lambda files: tuple(said))
    with pytest.raises(ConfigError) as error:
        check_units(plan, files)
    assert error.value.problems == ("/c:2: [Train a] Service.Nice=77: systemd says: out of range",)
    said.append("torchpar-train@b.service: fatal")
    match = "nothing has changed:\n/c:2: .*\n/c:2: .*\ntorchpar-train@b.service: fatal$"
    with pytest.raises(SystemdError, match=match):
        check_units(plan, files)


def test_what_is_wrong_with_a_unit_as_a_whole_is_said_with_the_line_that_makes_it_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a key of torchpar's or of systemd's; that the unit is bad is no second problem."""
    text = "[Train a]\nScript=/a.py\nWorkingDirectory=/proc/1/cwd\nService.RestartMaxDelaySec=9\n"
    plan = make_plan(parse_config([ConfFile("/c", text)], make_host()), make_host())
    unit = "torchpar-train@a.service"
    said = (
        f"{unit}: WorkingDirectory= may not be below /proc/, /sys/ or /dev/ when using mount namespacing. Refusing.",
        f"{unit}: RestartMaxDelaySec= has no effect with RestartSteps=0. Ignoring.",
        f"Unit {unit} has a bad unit file setting.",
    )
    monkeypatch.setattr("torchpar.host.analyze.verify_units", lambda files: said)
    with pytest.raises(ConfigError) as error:
        check_units(plan, make_units(plan).files)
    directory, delay = error.value.problems
    assert directory.startswith("/c:3: [Train a] WorkingDirectory=: systemd says: WorkingDirectory= may not be below")
    assert delay.startswith("/c:4: [Train a] Service.RestartMaxDelaySec=: systemd says: RestartMaxDelaySec= has no ")


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("/etc/systemd/system/srv-data.mount:7: Unknown key name 'Foo' in section 'Mount', ignoring.", False),
        ("srv-data.mount: Unit is bound to a device.", False),
        ("/etc/systemd/system/torchpar-train@a.service.d/override.conf:3: Failed to parse it", False),
        ("Unknown key in a file of nobody", False),
        ("Unit torchpar-train@a.service is masked.", False),
        ("torchpar-train@a.service: Failed to create it: Unit srv-data.mount has a bad unit file setting.", True),
        ("Unit torchpar-infer@b.socket has a bad unit file setting.", True),
    ],
)
def test_what_is_wrong_with_other_peoples_units_keeps_nothing_from_being_applied(
    monkeypatch: pytest.MonkeyPatch, said: str, refused: bool
) -> None:
    """A service waits for mounts, so their units are read with its own."""
    monkeypatch.setattr("torchpar.host.analyze.verify_units", lambda files: (said, said))
    if refused:
        with pytest.raises(SystemdError, match="does not accept"):
            check_units(PLAN, FILES)
    else:
        assert check_units(PLAN, FILES) == (said,)
