"""What torchpard answers, as the commands take it."""

from __future__ import annotations

import json
from typing import Any

from torchpar.daemon.client import parse_answer

SERVICE: dict[str, Any] = {
    "unit": "torchpar-train@a.service", "kind": "train", "name": "a", "state": "running", "main_pid": 7,
    "in_force": True, "placed": "ok", "cpus": "0-3", "threads": [3], "memory_policy": {"policy": "bind", "nodes": "0"},
    "allocator": "glibc", "items": [], "loading": None, "throughput": None, "enabled": False, "given_cpus": 4,
    "listen": [], "restarts_in_10_minutes": None, "failure": None, "state_age_seconds": 7.5, "cpus_used": 3.5,
    "memory_bytes": 2**30, "memory_limit_bytes": None, "serving": None, "hang": None, "wrong": [], "problem": None,
}  # fmt: skip
ANSWER = {
    "version": 1, "generation": 3, "conf": "in sync", "auto_apply": False, "services": [SERVICE], "notices": [],
    "well": True, "wrong": [],
}  # fmt: skip


def test_an_answer_is_taken_as_it_is() -> None:
    """With what a newer torchpard says besides."""
    assert parse_answer(json.dumps({**ANSWER, "more": 1}).encode()) == {**ANSWER, "more": 1}


def test_what_is_no_answer_is_none() -> None:
    """As when nobody answers: the command then looks by itself. An older torchpard may still run after an upgrade."""
    older = {key: value for key, value in SERVICE.items() if key != "in_force"}
    for answer in (
        {**ANSWER, "version": 2}, {**ANSWER, "services": [older]}, {**ANSWER, "services": {}}, [], None,
        {**ANSWER, "services": [{**SERVICE, "threads": ["3"]}]}, {**ANSWER, "notices": ["a\ud800"]},
        {**ANSWER, "services": [{**SERVICE, "throughput": {"loader_wait_share": float("nan")}}]},
    ):  # fmt: skip
        assert parse_answer(json.dumps(answer).encode()) is None
    assert parse_answer(b"[" * 1_000_000) is None
    assert parse_answer(json.dumps(ANSWER).encode()[:-1]) is None
