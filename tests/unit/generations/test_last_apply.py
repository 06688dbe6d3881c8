"""Whether the last apply has done its work is kept, whatever ends it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from torchpar.contract.errors import BusyError, StoreError, SystemdError
from torchpar.generations.last_apply import find_failed_services, noted, read_last_apply


def test_what_ends_without_an_error_has_succeeded(tmp_path: Path) -> None:
    file = tmp_path / "last"
    assert read_last_apply(file) is None
    with noted(file):
        pass
    last = read_last_apply(file)
    assert last and last.success and abs(last.timestamp_seconds - time.time()) < 60


@pytest.mark.parametrize("error", [StoreError("x"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_error_is_a_failure_and_goes_on(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "last"
    with noted(file):
        pass
    with pytest.raises(type(error)), noted(file):
        raise error
    last = read_last_apply(file)
    assert last and not last.success


def test_one_that_another_kept_out_was_not_tried(tmp_path: Path) -> None:
    file = tmp_path / "last"
    with noted(file):
        pass
    with pytest.raises(BusyError), noted(file):
        raise BusyError("another is at work")
    last = read_last_apply(file)
    assert last and last.success


def test_where_it_cannot_be_written_nothing_fails(tmp_path: Path) -> None:
    with noted(tmp_path / "nowhere" / "last"):
        pass
    (tmp_path / "last").write_text("[")
    assert read_last_apply(tmp_path / "last") is None


def test_services_that_its_restart_has_ended_are_found_of_that_generation(tmp_path: Path) -> None:
    """Whose generation is in force all the same: why it was not confirmed, most likely."""
    file = tmp_path / "last"
    said = "systemctl restart: failed\nthese do not run: a.service; see: systemctl status\ngeneration 7 is in force; x"
    with pytest.raises(SystemdError), noted(file):
        raise SystemdError(said)
    assert find_failed_services(7, file) == "these do not run: a.service"
    assert find_failed_services(6, file) == ""
    with noted(file):
        pass
    assert find_failed_services(7, file) == ""
