"""What processes of a service tell: what is written is what is read, and anything else is nothing."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from torchpar.contract import reports
from torchpar.contract.reports import (
    MOST_RANKS,
    SLOTS,
    Progress,
    RankProgress,
    RankReport,
    make_rank_json,
    make_slot,
    parse_progress,
    parse_rank_json,
    progress_bytes,
)

FIRST = Progress(
    pid=7, local_rank=0, time=100.0, steps=10, samples=640, batches=10, waited=0.5, fetching=0.25, fetched=3,
    iterators=2, workers=4, pageable=True,
)  # fmt: skip
REPORT = RankReport(
    pid=10, local_rank=3, torch="2.13.0+cpu", threads=2, interop_threads=1, cpus="0-1", allocator="jemalloc"
)


def later(progress: Progress, number: int) -> Progress:
    """The totals of the same process some reports later."""
    return replace(progress, time=progress.time + 2.0 * number, steps=progress.steps + number)


def written(*slots: tuple[Progress, int], into: bytes = b"") -> bytes:
    """A file into which these were written, each as its process's so-many-th."""
    data = bytearray(into)
    for progress, number in slots:
        place, slot = make_slot(progress, number)
        data.extend(bytes(max(0, place + len(slot) - len(data))))
        data[place : place + len(slot)] = slot
    return bytes(data)


# ---- rank-N.json ----


def test_a_rank_report_is_read_as_it_was_written() -> None:
    """Also with what a later version may add."""
    text = make_rank_json(REPORT)
    assert parse_rank_json(text.encode()) == REPORT
    assert parse_rank_json(json.dumps({**json.loads(text), "colour": "red"}).encode()) == REPORT


@pytest.mark.parametrize(
    "text",
    [
        *[b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b"null", b'{"version": 1}'],
        *[
            make_rank_json(REPORT).replace(old, new).encode()
            for old, new in [
                ('"version": 1', '"version": 2'),
                ('"pid": 10', '"pid": "10"'),
                ('"threads": 2', '"threads": ' + "9" * 5000),
                ("jemalloc", "\\n[0m"),
                ('"cpus"', '"CPUs"'),
            ]
        ],
    ],
)
def test_what_is_no_rank_report_is_none(text: bytes) -> None:
    """Nested too deep, of another version, without a field, with a line break."""
    assert parse_rank_json(text) is None


# ---- progress ----


def test_progress_is_read_as_it_was_written() -> None:
    """Of each rank the oldest that is still there, and the latest."""
    one, other = replace(FIRST, pageable=False), replace(FIRST, local_rank=MOST_RANKS - 1, pid=2**22)
    data = written((one, 0), *[(later(other, number), number) for number in range(SLOTS + 5)])
    assert len(data) <= progress_bytes(MOST_RANKS)
    assert parse_progress(data) == (RankProgress(one, one), RankProgress(later(other, 5), later(other, SLOTS + 4)))
    assert parse_progress(data[: progress_bytes(1)]) == (RankProgress(one, one),)


@pytest.mark.parametrize(
    "restarted",
    [replace(FIRST, pid=8, steps=0), replace(FIRST, pid=8), replace(FIRST, samples=1)],
    ids=["another process", "another process that is as far", "fewer samples"],
)
def test_a_rank_that_was_started_again_begins_anew(restarted: Progress) -> None:
    """What the process before it told has no part in its rate, whatever is left of that."""
    before = written(*[(later(FIRST, number), number) for number in range(40)])
    restarted = replace(restarted, time=1000.0)
    for count in range(1, 40):
        after = written(*[(later(restarted, number), number) for number in range(count)], into=before)
        oldest = max(0, count - SLOTS)
        assert parse_progress(after) == (RankProgress(later(restarted, oldest), later(restarted, count - 1)),)


def test_two_processes_that_tell_as_one_rank_do_not_hide_each_other() -> None:
    """Such as two trials that one service runs side by side; the one that told last is shown."""
    trials = FIRST, replace(FIRST, pid=8, time=FIRST.time + 1.0, steps=5000)
    slots = [(later(trials[number % 2], number // 2), number) for number in range(8)]
    assert parse_progress(written(*slots)) == (RankProgress(trials[1], later(trials[1], 3)),)


@pytest.mark.parametrize("rank", [-1, MOST_RANKS])
def test_a_rank_without_a_place_writes_nowhere(rank: int) -> None:
    """Not in the part of another one."""
    with pytest.raises(ValueError, match=str(rank)):
        make_slot(replace(FIRST, local_rank=rank), 0)


@pytest.mark.parametrize("fields", [{"steps": 2**64}, {"samples": -1}, {"workers": 2**32}, {"pid": -1}])
def test_a_total_that_has_no_room_is_an_error(fields: dict[str, Any]) -> None:
    """It is not written as another one."""
    with pytest.raises(ValueError, match=r"\w"):
        make_slot(replace(FIRST, **fields), 0)


@pytest.mark.parametrize("field", ["time", "waited", "fetching"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_time_that_is_none_is_not_told(field: str, value: float) -> None:
    """NaN compares as neither and would be in every sum."""
    bad = replace(FIRST, **{field: value})
    assert parse_progress(written((bad, 0))) == ()
    # Beside others too: what is told is always sound.
    for told in parse_progress(written(*[(replace(later(FIRST, n), **{field: value}), n) if n % 5 == 3 else
                                         (later(FIRST, n), n) for n in range(SLOTS)])):  # fmt: skip
        assert all(0 <= total < 2**53 for total in (*vars(told.first).values(), *vars(told.last).values()))


@pytest.mark.parametrize("field", ["steps", "samples", "batches", "fetched", "iterators"])
def test_a_count_beyond_a_floats_is_not_told(field: str) -> None:
    """The commands take none, and with it no answer at all."""
    assert parse_progress(written((replace(FIRST, **{field: 2**60}), 0))) == ()


def test_a_slot_that_is_read_while_it_is_written_is_the_old_or_the_new_or_none() -> None:
    """Any mixture of both, byte by byte: what is told has been written, and the other slots are there."""
    draw = random.Random(1)
    whole = written(*[(later(FIRST, number), number) for number in range(SLOTS)])
    place, slot = make_slot(later(FIRST, SLOTS), SLOTS)
    known = {later(FIRST, number) for number in range(SLOTS + 1)}
    torn = 0
    for _ in range(2000):
        data = bytearray(whole)
        cut, other = sorted(draw.choices(range(len(slot) + 1), k=2))
        data[place + cut : place + other] = slot[cut:other]
        (told,) = parse_progress(bytes(data))
        assert {told.first, told.last} <= known
        assert told.last.steps >= FIRST.steps + SLOTS - 1 and told.first.steps <= FIRST.steps + 1
        torn += bytes(data) not in (whole, written((later(FIRST, SLOTS), SLOTS), into=whole))
    assert torn > 100


def test_any_bytes_are_totals_or_nothing() -> None:
    """Random ones, cut off anywhere, with bits turned, in the place of another rank."""
    draw = random.Random(2)
    whole = written(*[(replace(later(FIRST, n), local_rank=rank), n) for rank in range(3) for n in range(SLOTS)])
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randrange(20)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        at = draw.randrange(len(data))
        for told in parse_progress(bytes(data[: draw.randrange(len(data))]) + draw.randbytes(at) + bytes(data[at:])):
            assert told.first.pid == told.last.pid == FIRST.pid and told.first.time <= told.last.time
    assert parse_progress(b"") == parse_progress(bytes(progress_bytes(MOST_RANKS))) == ()
    assert parse_progress(whole[progress_bytes(1) :]) == ()


def test_a_checksum_that_holds_is_all_that_is_believed() -> None:
    """A job that writes sound totals of its own invention tells of itself alone: numbers, in range."""
    draw = random.Random(3)
    for _ in range(300):
        body = draw.randbytes(120)
        slot = reports._SLOT.pack(reports._MAGIC, reports.binascii.crc32(body), body)
        for told in parse_progress(slot * SLOTS * 3):
            assert all(0 <= total < 2**53 for total in vars(told.last).values())
