"""Which OpenMP runtimes a process has loaded."""

from __future__ import annotations

from pathlib import Path

from torchpar.host.openmp import read_openmp

LINE = "7f0000000000-7f0000001000 r-xp 00000000 08:01 1 {}\n"


def test_each_runtime_is_named_once_by_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    paths = [
        "/v/torch/lib/libgomp-a34b3233.so.1",
        "/opt/libiomp5.so",
        "/opt/libiomp5.so",
        "/usr/lib/libgompx.so",
        "/a b",
    ]
    (tmp_path / "7/maps").write_text("".join(LINE.format(path) for path in paths))
    assert read_openmp([7], 5.0, str(tmp_path)) == {7: ("libgomp-a34b3233.so.1", "libiomp5.so")}


def test_a_process_that_has_ended_is_left_out(tmp_path: Path) -> None:
    assert read_openmp([8], 5.0, str(tmp_path)) == {}
