"""A rank binds itself: CPUs and memory nodes, narrowed from what systemd has set."""

from __future__ import annotations

import os

import pytest

from torchpar.runtime import binding


@pytest.fixture
def affinity():  # type: ignore[no-untyped-def]
    """The CPUs of the test process, which are its own again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def test_a_process_is_bound_to_its_ranks_cpus(affinity: set[int]) -> None:
    """The first CPU of those that it has."""
    binding.bind_cpus(str(min(affinity)))
    assert os.sched_getaffinity(0) == {min(affinity)}


def test_a_process_is_never_bound_to_more_than_it_had(
    affinity: set[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """What `systemctl edit` has narrowed stays narrow; what is impossible is said, and the job goes on."""
    os.sched_setaffinity(0, {min(affinity)})
    binding.bind_cpus(f"{min(affinity)}-{max(affinity)}")
    assert os.sched_getaffinity(0) == {min(affinity)}
    binding.bind_cpus("4000-4001")
    assert os.sched_getaffinity(0) == {min(affinity)}
    assert capfd.readouterr().err == (
        f"torchpar: CPUs 4000-4001 are planned, but the process may only use {min(affinity)}: it is not bound\n"
    )


@pytest.mark.parametrize(
    ("policy", "planned", "set_to"),
    [
        ((binding.BIND, {0, 1}), "1", (binding.BIND, {1})),
        ((binding.INTERLEAVE, {0, 1, 2, 3}), "2-3", (binding.INTERLEAVE, {2, 3})),
        ((binding.PREFERRED, {0}), "1", (binding.PREFERRED, {1})),
        ((binding.PREFERRED, {0}), "2-3", (binding.PREFERRED, {2})),
        ((binding.BIND | 0x8000, {0, 1}), "0", (binding.BIND | 0x8000, {0})),
        # What needs no change, what has no nodes (default, local), and NUMAMask= of other nodes than the CPUs'.
        ((binding.BIND, {1}), "1", None),
        ((0, set()), "1", None),
        ((4, set()), "1", None),
        ((binding.BIND, {2}), "1", None),
    ],
)
def test_the_nodes_of_a_memory_policy_become_the_ranks(
    policy: tuple[int, set[int]],
    planned: str,
    set_to: tuple[int, set[int]] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kind of policy is the service's, and stays."""
    done: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(binding, "read_memory_policy", lambda: policy)
    monkeypatch.setattr(binding, "set_memory_policy", lambda mode, nodes: done.append((mode, nodes)))
    binding.bind_memory(planned, {planned, "0-9"})
    assert done == ([set_to] if set_to else [])


def test_ranks_on_the_same_nodes_keep_the_services_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd has set it, and nothing needs to be asked of the kernel."""
    monkeypatch.setattr(binding, "read_memory_policy", lambda: pytest.fail("asked"))
    binding.bind_memory("0", {"0"})


def test_a_policy_that_the_kernel_refuses_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not the job's end. Node 900 is on no machine."""
    monkeypatch.setattr(binding, "read_memory_policy", lambda: (binding.BIND, {900, 901}))
    binding.bind_memory("900", {"900", "901"})
    said = capfd.readouterr().err
    assert said.startswith("torchpar: memory nodes 900: the memory policy stays as it is: ")


def test_the_policy_of_this_process_is_read_from_the_kernel() -> None:
    """Whatever it is: a mode that linux/mempolicy.h knows, and nodes only where the mode takes some."""
    try:
        mode, nodes = binding.read_memory_policy()
    except OSError as error:
        pytest.skip(f"no get_mempolicy here: {error}")
    assert 0 <= mode & ~binding.MODE_FLAGS <= 6
    assert nodes == set() or mode & ~binding.MODE_FLAGS not in (0, 4)
