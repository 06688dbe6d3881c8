"""The checks of doctor: each finds its fault, and is silent without it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.doctor.cases import CASES, Case
from tests.unit.doctor.made import Made
from torchpar.doctor.check import all_checks, examine
from torchpar.doctor.finding import Finding, Severity

CHECKS = {check.name: check for check in all_checks()}
BAD = (Severity.WARN, Severity.FAIL, Severity.NOTE, Severity.UNKNOWN)


def findings(name: str, made: Made, folder: Path) -> tuple[Finding, ...]:
    (result,) = examine(made.make(folder), [CHECKS[name]])
    return result.findings


def names() -> list[str]:
    return [f"{case.check}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=names())
def test_the_fault_is_found_with_its_evidence_and_its_cure(case: Case, tmp_path: Path) -> None:
    found = [finding for finding in findings(case.check, case.fault, tmp_path) if finding.severity in BAD]
    assert [finding.severity for finding in found] == [case.severity]
    (finding,) = found
    said = " ".join([finding.found, finding.evidence, finding.cure, *finding.commands])
    assert case.says in said
    assert finding.cure or finding.commands
    assert finding.evidence or finding.severity is Severity.UNKNOWN
    assert not finding.found.endswith(".")


@pytest.mark.parametrize("case", CASES, ids=names())
def test_without_the_fault_the_check_applies_and_is_silent(case: Case, tmp_path: Path) -> None:
    """A check that does not apply to the host without the fault would be silent for another reason."""
    assert [finding.severity for finding in findings(case.check, case.silence, tmp_path)] == [Severity.OK]


def test_every_check_has_a_case() -> None:
    assert set(CHECKS) == {case.check for case in CASES}
    assert len(CHECKS) >= 40


@pytest.mark.parametrize("case", CASES, ids=names())
def test_the_commands_are_whole_lines_of_a_shell(case: Case, tmp_path: Path) -> None:
    for finding in findings(case.check, case.fault, tmp_path):
        for command in finding.commands:
            assert shlex.split(command) and command.isprintable()


@pytest.mark.parametrize("case", CASES, ids=names())
def test_no_command_adds_to_a_file_or_decides_for_an_administrator(case: Case, tmp_path: Path) -> None:
    """Run twice it leaves what it left at once; what somebody may have meant so is told in words."""
    for finding in findings(case.check, case.fault, tmp_path):
        for command in finding.commands:
            assert ">>" not in command
            assert not re.search(r"\brm\b|\bunmask\b|--now\b|torchpar apply|timedatectl", command)


def test_a_host_without_services_has_no_fault(tmp_path: Path) -> None:
    """Whoever has just installed the package is told nothing that is not so."""
    results = examine(Made(conf="").make(tmp_path), list(CHECKS.values()))
    assert not [finding for result in results for finding in result.findings if finding.severity in BAD[:2]]


def test_a_broken_conf_tells_of_no_service_that_it_does_not_declare_it(tmp_path: Path) -> None:
    """It starts as it is in force; `systemctl disable` would be a loss."""
    case = next(case for case in CASES if case.check == "unit.enabled")
    made = dataclasses.replace(case.fault, broken=True)
    assert [each.severity for each in findings("unit.enabled", made, tmp_path)] == [Severity.NOT_APPLICABLE]


TEXT = st.text(max_size=60)


@given(case=st.sampled_from(CASES), text=TEXT, number=st.integers(-(2**70), 2**70))
def test_no_check_fails_on_what_the_kernel_or_a_person_may_have_written(
    case: Case, text: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files of any content, properties of any text."""
    files = dict.fromkeys(case.fault.files, f"{text}\n{number} {text}={number}\n")
    show = {unit: dict.fromkeys(shown, text) for unit, shown in case.fault.show.items()}
    made = dataclasses.replace(case.fault, files=files, show=show)
    assert findings(case.check, made, tmp_path_factory.mktemp("root"))


def test_what_needrestart_is_told_is_what_the_package_tells_it(tmp_path: Path) -> None:
    shipped = (Path(__file__).resolve().parents[3] / "debian/needrestart/torchpar.conf").read_text(encoding="utf-8")
    case = next(case for case in CASES if case.check == "pkg.needrestart")
    ((command,),) = (finding.commands for finding in findings(case.check, case.fault, tmp_path))
    assert shlex.split(command)[1] in shipped.splitlines()
