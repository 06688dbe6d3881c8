"""What the package ships agrees with the code: version, manual pages, conf files, completion."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from debian.changelog import Changelog

from torchpar.cli import fleet
from torchpar.cli.main import COMMANDS, torchpar
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.settings import SECTIONS, settings_of
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.version import version
from torchpar.facts.topology import HostFacts, NumaNode

TREE = Path(__file__).resolve().parents[2]

FACTS = HostFacts(
    hostname="host",
    arch="x86_64",
    online_cpus=CpuSet(range(4)),
    offline_cpus=CpuSet(),
    allowed_cpus=CpuSet(range(4)),
    allowed_mems=CpuSet([0]),
    isolated_cpus=CpuSet(),
    numa_nodes=(NumaNode(0, CpuSet(range(4))),),
    cores=tuple(CpuSet([n]) for n in range(4)),
    packages=None,
    dies=(),
    l3_groups=None,
    cpu_kinds=(),
    distances=None,
    gpus=(),
    nics=(),
    cpu_limit=None,
)


def read(path: str) -> str:
    return (TREE / path).read_text(encoding="utf-8")


def parse(text: str) -> Config:
    return parse_config([ConfFile("torchpar.conf", text)], FACTS)


def conf_page_maker() -> ModuleType:
    """debian/man/make_conf_page.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("make_conf_page", TREE / "debian/man/make_conf_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_that_of_the_changelog() -> None:
    """debian/changelog is the one place that has it."""
    assert version() == str(Changelog(read("debian/changelog"), max_blocks=1).version)


@pytest.mark.parametrize("section", SECTIONS)
def test_torchpar_conf_5_has_every_key_of_the_section_once(section: str) -> None:
    """A key that is in the table is in the manual page, with its default, and the other way round."""
    page = conf_page_maker().make_page(read("debian/man/torchpar.conf.5.in"))
    assert "@KEYS" not in page
    chapters = {
        "Match": ("[MATCH]",),
        "Host": ("[HOST]",),
        "Train": ("[TRAIN] AND [INFER]", "[TRAIN]"),
        "Infer": ("[TRAIN] AND [INFER]", "[INFER]"),
    }
    text = "\n".join(re.split(r"^\.SH ", page, flags=re.M)[_index(page, chapter)] for chapter in chapters[section])
    documented = re.findall(r'^\.BI ([A-Za-z]+)= " ', text, flags=re.M)
    assert sorted(documented) == sorted(row.key for row in settings_of(SECTIONS[section]))


def _index(page: str, chapter: str) -> int:
    return [part.partition("\n")[0] for part in re.split(r"^\.SH ", page, flags=re.M)].index(chapter)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Runs a maintainer script with a verb, on a host below `tmp_path`, and returns what it ran and printed."""
    bin_, called = tmp_path / "bin", tmp_path / "called"
    bin_.mkdir()
    for name in ("systemctl", "deb-systemd-invoke", "debhelper", "torchpar"):
        listing = "case $* in list-units*run-*) echo torchpar-run-x-7.service loaded;; esac"
        (bin_ / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{called}\n{listing}\n')
        (bin_ / name).chmod(0o755)
    for folder in ("run/systemd/system", "var/lib/prometheus/node-exporter", "etc"):
        (tmp_path / folder).mkdir(parents=True)

    def run_script(name: str, verb: str) -> list[str]:
        text = re.sub(r"(?<![\w.*])/(run|var|etc)/", rf"{tmp_path}/\1/", read(f"debian/torchpar.{name}"))
        called.write_text("")
        path = f"{bin_}:{os.environ['PATH']}"
        text = text.replace("#DEBHELPER#", "debhelper")
        done = subprocess.run(["sh", "-c", text, name, verb], env={"PATH": path}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return [*done.stdout.splitlines(), *called.read_text().splitlines()]

    return run_script


@pytest.mark.subprocess
def test_remove_forgets_failed_units_once_torchpard_has_been_stopped_too(
    script: Callable[[str, str], list[str]],
) -> None:
    """What debhelper adds stops it. Ad-hoc jobs are named like the services, as all end. An upgrade does neither."""
    said, *called = script("prerm", "remove")
    assert said == "torchpar: stopping torchpar-run-x-7.service"
    assert called[-2:] == ["debhelper ", "systemctl reset-failed torchpar*"]
    assert any(line.startswith("deb-systemd-invoke stop") and "torchpar-run-*.service" in line for line in called)
    assert script("prerm", "upgrade") == ["debhelper "]


@pytest.mark.subprocess
@pytest.mark.parametrize(("verb", "left"), [("remove", False), ("purge", False), ("upgrade", True)])
def test_metrics_do_not_outlive_the_package(
    script: Callable[[str, str], list[str]], tmp_path: Path, verb: str, left: bool
) -> None:
    """node_exporter would tell for ever what was last true."""
    paths = [tmp_path / "var/lib/prometheus/node-exporter" / name for name in ("torchpar.prom", "torchpar-doctor.prom")]
    for path in paths:
        path.touch()
    script("postrm", verb)
    assert [path.exists() for path in paths] == [left, left]


@pytest.mark.subprocess
def test_a_conf_of_another_package_is_put_in_force_once_no_other_torchpar_is_at_work(
    script: Callable[[str, str], list[str]],
) -> None:
    """Nothing tries again: dpkg tells it once."""
    assert script("postinst", "triggered") == ["debhelper ", "torchpar apply --wait"]


def test_the_shipped_conf_declares_nothing() -> None:
    """An untouched conffile is upgraded without a question, and decides nothing."""
    assert all(line.startswith("#") for line in read("etc/torchpar.conf").splitlines() if line)
    assert parse(read("etc/torchpar.conf")) == parse("")


def test_the_shipped_conf_is_right_when_its_comment_signs_are_removed() -> None:
    """Who removes the # in front of a setting gets something that works."""
    text = re.sub(r"^#(?=\[|[A-Z][A-Za-z]*=)", "", read("etc/torchpar.conf"), flags=re.M)
    config = parse(text)
    assert [service.unit for service in config.services] == [
        "torchpar-infer@resnet.service",
        "torchpar-train@resnet.service",
    ]
    assert config.services[1].settings.enabled


def test_the_demo_holds_no_cpus_of_its_own() -> None:
    """The vendor layer declares a job and a service that any host can start beside its own."""
    config = parse(read("etc/00-vendor.conf"))
    assert [service.unit for service in config.services] == [
        "torchpar-infer@demo.service",
        "torchpar-train@demo.service",
    ]
    assert {service.settings.cpus.kind for service in config.services} == {CpuRequestKind.SHARED}
    assert not any(service.settings.enabled for service in config.services)


@pytest.mark.parametrize(
    "unit",
    sorted({*(TREE / "systemd").glob("torchpar*.service")} - {*(TREE / "systemd").glob("torchpar-[ti]*@.service")}),
    ids=lambda path: path.name,
)
def test_what_torchpar_says_in_the_journal_is_torchpars(unit: Path) -> None:
    """And not of the program that systemd executes, as nsenter."""
    assert "SyslogIdentifier=torchpar" in unit.read_text().splitlines()


@pytest.mark.parametrize("unit", sorted((TREE / "systemd").glob("torchpar*.*")), ids=lambda path: path.name)
def test_every_manual_page_that_a_unit_names_is_there(unit: Path) -> None:
    """`systemctl help UNIT` opens a page that the package has."""
    pages = {path.name for path in (TREE / "debian/man").glob("*.[1-8]")} | {"torchpar.conf.5"}
    named = re.findall(r"man:(torchpar[^ (]*)\((\d)\)", unit.read_text(encoding="utf-8"))
    assert {f"{name}.{number}" for name, number in named} <= pages
    if unit.suffix in (".service", ".socket", ".slice", ".target"):
        assert named, "Documentation= names no manual page"


def test_every_checker_is_pinned() -> None:
    """A new version of a checker comes by a commit, not by the day the check runs."""
    setup = configparser.ConfigParser()
    setup.read(TREE / "setup.cfg")
    pins = setup["options.extras_require"]["check"].split()
    assert pins and all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", pin) for pin in pins)


def test_every_variable_of_the_role_has_a_default_and_is_on_the_page() -> None:
    """And what the page says of it is what the role's own specification says."""
    role = "src/ansible/roles/torchpar"
    said = re.findall(
        r"^      (torchpar_\w+):$.*?^        default: (.*?)$", read(f"{role}/meta/argument_specs.yml"), re.M | re.S
    )
    given = re.findall(r"^(torchpar_\w+): (.*)$", read(f"{role}/defaults/main.yml"), re.M)
    assert sorted(said) == sorted(given) and len(said) > 10
    page = read("debian/man/torchpar-rollout.7")
    for name, default in given:
        shown = default.strip('"')
        assert re.search(rf"\b{name}\b", page)
        if shown not in ("", "{}", "[]"):
            assert f'{name} " ({shown})' in page.replace("\\-", "-"), name


@pytest.mark.parametrize("command", COMMANDS)
def test_torchpar_8_has_every_command_and_option(command: str) -> None:
    """A command is found in the manual page with all that it takes, and nothing that it does not."""
    page = read("debian/man/torchpar.8").replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\fI", "")
    entry = re.search(rf"^\.TP\n(?:\.B )?({command}\b.*)", page, flags=re.M)
    inputs = re.search(r"^\.I INPUTS\n(.*?)^\.", page, flags=re.M | re.S)
    assert entry and inputs, f"no entry for {command}"
    text = entry[1].replace("INPUTS", inputs[1])
    found = torchpar.get_command(click.Context(torchpar), command)
    assert found is not None
    options = {name for parameter in found.params for name in parameter.opts if name.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", text)) == options - {"--help"}


@pytest.mark.parametrize("command", fleet.COMMANDS)
def test_torchpar_fleet_7_has_every_command_and_option(command: str) -> None:
    """As torchpar(8) has the others."""
    page = read("debian/man/torchpar-fleet.7").replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    entry = re.search(rf"^\.TP\ntorchpar fleet ({command}\b.*)", page, flags=re.M)
    assert entry, f"no entry for {command}"
    found = fleet.fleet.get_command(click.Context(fleet.fleet), command)  # type: ignore[attr-defined]
    options = {name for parameter in found.params for name in parameter.opts if name.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", entry[1])) == options - {"--help"}


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "typed, expected",
    [
        ("torchpar vali", "validate"),
        ("torchpar apply --dry", "--dry-run"),
        ("torchpar fleet pl", "plan"),
        ("torchpar fleet check --fa", "--facts"),
    ],
)
def test_completion_offers_what_the_command_has(typed: str, expected: str, tmp_path: Path) -> None:
    """Bash asks the program itself; a new verb or option needs no second list."""
    program = tmp_path / "torchpar"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from torchpar.cli.main import main; main()' \"$@\"\n")
    program.chmod(0o755)
    script = (
        f"source {TREE}/debian/completion/torchpar; COMP_LINE='{typed}' COMP_POINT={len(typed)}; "
        '_torchpar; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(TREE / "src")}
    answer = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert expected in answer.stdout.split()
