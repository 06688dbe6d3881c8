"""What processes of a service tell: what is written is what is read, and anything else is nothing."""

from __future__ import annotations

import json

import pytest

from torchpar.contract.reports import RankReport, make_rank_json, parse_rank_json

REPORT = RankReport(
    pid=10, local_rank=3, torch="2.13.0+cpu", threads=2, interop_threads=1, cpus="0-1", allocator="jemalloc"
)


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
