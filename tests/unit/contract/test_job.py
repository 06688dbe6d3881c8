"""The variable between unit and job."""

from __future__ import annotations

import dataclasses
import json

import pytest

from torchpar.contract.errors import JobSettingsError
from torchpar.contract.job import (
    VARIABLE,
    JobSettings,
    RankSettings,
    ServeSettings,
    job_environment,
    parse_job_environment,
)

SETTINGS = JobSettings(
    service="torchpar-train@demo.service",
    interop_threads=1,
    cudnn_benchmark=None,
    ranks=(
        RankSettings(
            local_rank=0,
            cpus="0-3,8",
            numa_nodes="0",
            threads=4,
            loader_workers=1,
            gpus=(),
            loader_cpus="9-10",
            budget=7,
        ),
        RankSettings(local_rank=1, cpus="4-7", numa_nodes="1", threads=3, loader_workers=0, gpus=("0000:17:00.0",)),
    ),
    memory_policy="bind",
    max_restarts=3,
    nodes="2:4",
    endpoint="[2001:db8::1]:29400",
    interface="eth0",
    elastic=True,
    checkpoint_grace=600,
    prefetch_factor=4,
    pin_memory=True,
    own_threads=True,
)


SERVING = JobSettings(
    service="torchpar-infer@demo.service",
    interop_threads=1,
    cudnn_benchmark=None,
    ranks=SETTINGS.ranks,
    serve=ServeSettings(
        model="/srv/model.pt",
        handler=None,
        listen=("127.0.0.1:8000", "[::1]:8000"),
        grpc=("127.0.0.1:8001",),
        workers=None,
        backend="auto",
        max_batch=64,
        max_queue=None,
        drain_timeout=30,
        own=True,
        drain_delay=5,
    ),
)


def changed(**fields: object) -> dict[str, str]:
    """The environment of SETTINGS with some fields of its JSON set to other values."""
    return {VARIABLE: json.dumps({**json.loads(job_environment(SETTINGS)[VARIABLE]), **fields})}


def changed_rank(**fields: object) -> dict[str, str]:
    """The same for the fields of the first rank."""
    ranks = json.loads(job_environment(SETTINGS)[VARIABLE])["ranks"]
    return changed(ranks=[{**ranks[0], **fields}, ranks[1]])


def test_settings_come_back_as_they_were() -> None:
    """What the unit says is what the job reads."""
    assert SERVING.serve
    patient = [
        dataclasses.replace(SERVING, serve=dataclasses.replace(SERVING.serve, start_timeout=seconds))
        for seconds in (3600, None)
    ]
    for settings in (SETTINGS, SERVING, *patient):
        assert parse_job_environment(job_environment(settings)) == settings


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", 1), ("listen", "127.0.0.1:8000"), ("grpc", [8001]), ("workers", "2"), ("drain_timeout", -1), ("own", 1)],
)
def test_what_is_no_serving_is_refused(name: str, value: object) -> None:
    """A damaged unit is said to be one, with the place."""
    data = json.loads(job_environment(SERVING)[VARIABLE])
    data["serve"][name] = value
    with pytest.raises(JobSettingsError, match=rf"TORCHPAR_JOB.serve.{name}: .* render the unit again"):
        parse_job_environment({VARIABLE: json.dumps(data)})


def test_the_text_is_one_compact_line_of_sorted_ascii() -> None:
    """The same settings give the same bytes, fit for a line of a unit."""
    settings = JobSettings(service="torchpar-train@größe.service", interop_threads=2, cudnn_benchmark=True, ranks=())
    assert job_environment(settings) == {
        "TORCHPAR_JOB": '{"checkpoint_grace":120,"cudnn_benchmark":true,"elastic":false,"endpoint":null,'
        '"interface":null,"interop_threads":2,"max_restarts":0,"memory_policy":"default","nodes":"1",'
        '"pin_memory":null,"prefetch_factor":null,"ranks":[],'
        '"service":"torchpar-train@gr\\u00f6\\u00dfe.service"}'
    }
    assert parse_job_environment(job_environment(settings)) == settings


def test_without_the_variable_there_are_no_settings() -> None:
    """A script that no unit started has no plan."""
    assert parse_job_environment({"HOME": "/root"}) is None


def test_names_of_a_newer_unit_are_passed_over() -> None:
    """After a downgrade the unit in force may say more than this runtime knows."""
    assert parse_job_environment(changed(colour="red")) == SETTINGS
    assert parse_job_environment(changed_rank(colour="red")) == SETTINGS


def test_a_unit_of_an_older_version_is_read() -> None:
    """After an upgrade the unit in force does not say what that version did not know: it means what was then done."""
    old = json.loads(job_environment(SETTINGS)[VARIABLE])
    new = ("loader_cpus", "budget")
    # Each rank was written whole.
    ranks = [{**dataclasses.asdict(rank), "gpus": list(rank.gpus)} for rank in SETTINGS.ranks]
    ranks = [{key: value for key, value in rank.items() if key not in new} for rank in ranks]
    kept = {key: old[key] for key in ("service", "interop_threads", "cudnn_benchmark")}
    settings = parse_job_environment({VARIABLE: json.dumps({**kept, "ranks": ranks})})
    assert settings == JobSettings(
        service=SETTINGS.service,
        interop_threads=1,
        cudnn_benchmark=None,
        ranks=tuple(dataclasses.replace(rank, loader_cpus="", budget=0) for rank in SETTINGS.ranks),
    )


def test_hundreds_of_ranks_fit_in_the_one_variable_that_the_kernel_takes() -> None:
    """Each says only what differs from the one before, as a long list of CPUs may be that of them all."""
    scattered = ",".join(str(cpu) for cpu in range(0, 2048, 2))
    rank = RankSettings(0, scattered, "0-7", 1, 0, (), loader_cpus=scattered, budget=1)
    same = tuple(dataclasses.replace(rank, local_rank=number) for number in range(1000))
    own = tuple(dataclasses.replace(r, cpus=f"{r.local_rank},{r.local_rank + 1024}", loader_cpus="") for r in same)
    for ranks in (same, own):
        settings = dataclasses.replace(SETTINGS, ranks=ranks)
        environment = job_environment(settings)
        assert len(environment[VARIABLE]) < 32 * 1024
        assert parse_job_environment(environment) == settings


def test_ranks_come_back_whatever_their_numbers() -> None:
    """Also where they do not follow each other."""
    ranks = tuple(dataclasses.replace(SETTINGS.ranks[number % 2], local_rank=number) for number in (3, 4, 5, 9, 1, 2))
    settings = dataclasses.replace(SETTINGS, ranks=ranks)
    assert parse_job_environment(job_environment(settings)) == settings


def test_a_job_without_a_unit_is_told_which_signals_ask() -> None:
    """Nothing is said to one that has a unit: the text of units stays as it is."""
    assert "signals" not in job_environment(SETTINGS)[VARIABLE]
    settings = dataclasses.replace(SETTINGS, signals="each")
    assert parse_job_environment(job_environment(settings)) == settings


def test_a_rank_is_found_by_its_number() -> None:
    """LOCAL_RANK chooses; a number outside the plan gives nothing."""
    assert SETTINGS.rank(1) == SETTINGS.ranks[1]
    assert SETTINGS.rank(2) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({VARIABLE: ""}, "TORCHPAR_JOB: not JSON"),
        ({VARIABLE: "{"}, "TORCHPAR_JOB: not JSON"),
        ({VARIABLE: "[]"}, "TORCHPAR_JOB: [] is not"),
        ({VARIABLE: "{}"}, "TORCHPAR_JOB: 'ranks' is missing"),
        (changed(service=None), "TORCHPAR_JOB.service: None is not"),
        (changed(interop_threads=0), "TORCHPAR_JOB.interop_threads: 0 is not"),
        (changed(interop_threads=True), "TORCHPAR_JOB.interop_threads: True is not"),
        (changed(interop_threads="2"), "TORCHPAR_JOB.interop_threads: '2' is not"),
        (changed(cudnn_benchmark="yes"), "TORCHPAR_JOB.cudnn_benchmark: 'yes' is not"),
        (changed(ranks={}), "TORCHPAR_JOB.ranks: {} is not"),
        (changed(ranks=["0"]), "TORCHPAR_JOB.ranks[0]: '0' is not"),
        (changed_rank(threads=0), "TORCHPAR_JOB.ranks[0].threads: 0 is not"),
        (changed_rank(local_rank=-1), "TORCHPAR_JOB.ranks[0].local_rank: -1 is not"),
        (changed_rank(loader_workers=1.5), "TORCHPAR_JOB.ranks[0].loader_workers: 1.5 is not"),
        (changed_rank(cpus=[0, 1]), "TORCHPAR_JOB.ranks[0].cpus: [0, 1] is not"),
        (changed(nodes=2), "TORCHPAR_JOB.nodes: 2 is not"),
        (changed(endpoint=0), "TORCHPAR_JOB.endpoint: 0 is not"),
        (changed(signals=1), "TORCHPAR_JOB.signals: 1 is not"),
        (changed(elastic="no"), "TORCHPAR_JOB.elastic: 'no' is not"),
        (changed(checkpoint_grace=-1), "TORCHPAR_JOB.checkpoint_grace: -1 is not"),
        (changed(prefetch_factor=0), "TORCHPAR_JOB.prefetch_factor: 0 is not"),
        (changed(pin_memory="yes"), "TORCHPAR_JOB.pin_memory: 'yes' is not"),
        (changed_rank(loader_cpus=None), "TORCHPAR_JOB.ranks[0].loader_cpus: None is not"),
        (changed_rank(budget=-1), "TORCHPAR_JOB.ranks[0].budget: -1 is not"),
        (changed_rank(gpus=[0]), "TORCHPAR_JOB.ranks[0].gpus: [0] is not"),
    ],
)
def test_what_torchpar_does_not_write_is_named(environ: dict[str, str], message: str) -> None:
    """A damaged variable is one message that says which field and what to do."""
    with pytest.raises(JobSettingsError) as raised:
        parse_job_environment(environ)
    assert str(raised.value).startswith(message)
    assert str(raised.value).endswith("; render the unit again: torchpar apply")


def test_a_long_value_does_not_fill_the_journal() -> None:
    """The message shows the beginning of the value only."""
    with pytest.raises(JobSettingsError) as raised:
        parse_job_environment(changed(service=["x" * 5000]))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "9" * 100_000, '{"ranks":' * 50_000, "[[" * 400 + "]]" * 400, "\x00", "\ud800", '{"ranks": NaN}'],
)
def test_no_text_at_all_ends_in_a_traceback(text: str) -> None:
    """Any user can start a process with such a variable, which `torchpar run` then reads of it."""
    with pytest.raises(JobSettingsError) as raised:
        parse_job_environment({"TORCHPAR_JOB": text})
    assert len(str(raised.value)) < 300


def test_halves_of_letters_and_numbers_without_end_do_not_belong_there() -> None:
    """They are valid JSON, and no path, name or count."""
    for change in ({"service": "\ud800"}, {"endpoint": "a\0b"}, {"interop_threads": 10**400}, {"max_restarts": 2**60}):
        with pytest.raises(JobSettingsError, match="is not what belongs there"):
            parse_job_environment(changed(**change))
    for gpus in (["\udfff"], [["x"] * 1000] * 100):
        with pytest.raises(JobSettingsError, match="gpus: "):
            parse_job_environment(changed_rank(gpus=gpus))


@pytest.mark.parametrize(
    ("stated", "is_planned", "held"),
    [("4", (True, True), ("4", "3")), ("3", (False, True), ("3", "3")), ("7", (False, False), ("7", "7"))],
)
def test_what_an_administrator_says_of_threads_stays_for_every_rank(
    stated: str, is_planned: tuple[bool, bool], held: tuple[str, str]
) -> None:
    """Ranks of 4 and 3 threads: the unit says 4, and a 3 is not the plan's for the rank that has 4."""
    ranks = tuple(RankSettings(number, "0-3", "0", threads, 0, ()) for number, threads in enumerate((4, 3)))
    settings = JobSettings("torchpar-train@a.service", 1, None, ranks)
    assert tuple(settings.is_planned(rank, f"{stated},1") for rank in ranks) == is_planned
    for rank, own in zip(ranks, held):
        environ = {"OMP_NUM_THREADS": stated}
        settings.narrow_threads(rank, environ)
        assert environ == {"OMP_NUM_THREADS": own}
