"""Conf text to Config: what is read, what is refused, and how it is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.settings import SECTIONS, settings_of
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import CpuRequest, CpuRequestKind
from torchpar.contract.errors import ConfigError

HOST = make_host(packages=2, gpu_nodes=(0,))


def read(*texts: str) -> Config:
    """Parse files named /1.conf, /2.conf, ... for HOST."""
    return parse_config([ConfFile(f"/{i}.conf", text) for i, text in enumerate(texts, 1)], HOST)


def problems(*texts: str) -> list[str]:
    """The lines that a reading complains with."""
    with pytest.raises(ConfigError) as error:
        read(*texts)
    return list(error.value.problems)


def test_all_errors_of_all_files_come_at_once_in_their_order() -> None:
    """An admin mends a conf in one go."""
    assert problems(
        "[Host]\nReserve=1\n[Train a]\nThreads=four\nScript=a.py\n",
        "[Trian b]\nx=1\n[Train c]\n[Infer d]\nModel=/m.pt\nListen=here\n",
    ) == [
        "/1.conf:2: [Host] Reserve=1: unknown key; did you mean ReserveCores?",
        "/1.conf:3: [Train a] has nothing to run; set Script=/path/to/train.py or Module=NAME",
        "/1.conf:4: [Train a] Threads=four: 'four' is not a whole number; allowed: auto, or a number",
        "/1.conf:5: [Train a] Script=a.py: 'a.py' is not an absolute path; allowed: an absolute path",
        "/2.conf:1: unknown section [Trian b]; did you mean Train?",
        "/2.conf:3: [Train c] has nothing to run; set Script=/path/to/train.py or Module=NAME",
        "/2.conf:6: [Infer d] Listen=here: 'here' is not ADDRESS:PORT; "
        "allowed: ADDRESS:PORT ..., grpc:ADDRESS:PORT ...",
    ]


def test_what_begins_with_x_is_another_programs_as_for_systemd() -> None:
    """Nothing is said of it, and nothing done with it."""
    text = "[Train a]\nX-Owner=it's\nScript=/a.py\nService.X-Ours=1\n[X-Site]\nThreads=x\n[Train]\nThreads=2\n"
    config = read(text)
    assert (config.warnings, config.services[0].settings.threads) == ((), 2)
    assert not config.services[0].directives


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Train a]\nScript=/a\nListen=:80\n", "Listen=:80: unknown key here; it belongs in [Infer NAME]"),
        ("[Host]\nThreads=2\n", "unknown key here; it belongs in [Train NAME] or [Infer NAME]"),
        ("[Infer a]\nModel=/m\nReserveCores=1\n", "unknown key here; it belongs in [Host]"),
        ("[Train a]\nExecStart=/a.py\n", "unknown key; use Script="),
        ("[Train a]\nLimitNOFILE=9\n", "unknown key; a setting of systemd is written Service.LimitNOFILE="),
        ("[Train a]\nReadOnlyPaths=/a\n", "unknown key; a setting of systemd is written Service.ReadOnlyPaths="),
        ("[Host]\nNice=9\n", "[Host] Nice=9: unknown key"),
        ("[Train a]\nService.limitnofile=9\n", "is not Service.KEY of systemd; did you mean LimitNOFILE?"),
        ("[Host all]\nSMT=yes\n", "unknown section [Host all]; did you mean Host?"),
        ("[train a]\nScript=/a\n", "unknown section [train a]; did you mean Train?"),
    ],
)
def test_a_key_in_the_wrong_section_is_told_its_own(text: str, message: str) -> None:
    """It is a mistake, and would change what runs without a word."""
    assert any(message in problem for problem in problems(text))


def test_a_key_without_effect_yet_is_said_to_have_none() -> None:
    """Nobody should wait for what does not come; its default says nothing."""
    config = read("[Train a]\nScript=/a.py\nTune=online\nPrefetchFactor=auto\n")
    assert config.warnings == ("/1.conf:3: [Train a] Tune=online: has no effect in this version yet",)


def test_later_files_win_and_lists_append_until_reset() -> None:
    """The merge of systemd.syntax(7)."""
    config = read(
        "[Train]\nThreads=2\nEnvironment=A=1\n[Train a]\nScript=/a.py\nThreads=3\n",
        "[Train a]\nEnvironment=B=2 'C=x y'\nThreads=\n[Train b]\nScript=/b.py\nEnvironment=\nEnvironment=D=4\n",
    )
    a, b = (service.settings for service in config.services)
    assert (a.environment, a.threads) == (("A=1", "B=2", "C=x y"), None)
    assert (b.environment, b.threads) == (("D=4",), 2)


def test_a_continued_line_counts_from_its_first_line_and_skips_comments() -> None:
    """`\\` joins lines with a blank, comments in between are dropped."""
    config = read("[Train a]\nScript=/a.py\nArguments=--x \\\n  # a comment\n  'a b' \\\n  --y\n")
    train = config.services[0].train()
    assert train is not None and train.arguments == ("--x", "a b", "--y")
    assert config.services[0].origin("Arguments") == "/1.conf:3"


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ("Host=ho*", True), ("Host=other", False), ("GPUs=>=1", True), ("GPUs=0", False), ("CPUs=> 7 < 9", True),
        ("CPUs=!= 8", False), ("MemoryNodes=2", True), ("Architecture=amd64", True), ("Architecture=arm64", False),
        ("Host=ho*\nGPUs=4", False),
    ],
)  # fmt: skip
def test_match_decides_whether_a_file_applies(match: str, applies: bool) -> None:
    """One set of files serves a whole fleet."""
    config = read(f"[Match]\n{match}\n[Train a]\nScript=/a.py\n")
    assert bool(config.services) is applies


def test_a_mistake_in_a_file_that_does_not_apply_here_is_still_found() -> None:
    """The host it is for would find it too late."""
    assert problems("[Match]\nHost=other\n[Train a]\nScript=/a.py\nThreads=x\n")[0].startswith("/1.conf:5:")


def test_match_must_come_first() -> None:
    """It skips the whole file, so it cannot stand behind what it skips."""
    assert problems("[Host]\n[Match]\nHost=x\n") == [
        "/1.conf:2: [Match] must be the first section of its file; it skips all of it"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=1\n", "stands before the first section"),
        ("[Train a\n", "is not a section header"),
        ("[Train a/b]\n", "a service's name is made of"),
        ("[Train a:b]\nScript=/a.py\n", "a service's name has no ':'"),
        ("[Train torchpar.run:]\nScript=/a.py\n", "a service's name has no ':'"),
        ("[Train]\nScript=/a.py\n", "belongs to one service"),
        ("[Train a]\nnonsense\n", "is neither [Section] nor Key=Value"),
        ("[Train a]\nScript=/a\x07\n", "control character"),
        ("[Train a]\nScript=/a\udcff\n", "not UTF-8"),
        (f"[Train a]\nScript=/{'a' * 256}/b\n", "has a name of more than the 255 bytes that a file's can have"),
        (f"[Train a]\nModule=b\nReadWritePaths=/{'ä' * 128}\n", "has a name of more than the 255 bytes that a file"),
        ("[Train a]\nScript=/a\nPython=/usr/bin/python3/\n", "names a folder, and a program is a file"),
        ("[Train a]\nScript=/a\nModule=b\n", "both Script= and Module="),
        ("[Train a]\nScript=/a\nNodes=2\n", "Nodes= but no Endpoint=, where they meet; set Endpoint=HOST"),
        ("[Train a]\nScript=/a\nNodes=4:2\n", "a least number that is larger than the most"),
        ("[Train a]\nScript=/a\nNodes=2:4\nEndpoint=a\n", "only with Elastic=yes; set that, or Nodes=4"),
        ("[Train a]\nScript=/a\nCPUs=shared\nLend=yes\n", "Lend=yes has no meaning with CPUs=shared"),
        ("[Train a]\nScript=/a\nThreads=2\nBorrow=yes\n", "Borrow=yes has no use with Threads=2, which stays"),
        ("[Infer a]\nModel=/a\nWorkers=2\nBorrow=yes\n", "Borrow=yes has no use with Workers=2, which stays"),
        ("[Train a]\nScript=/a\nNodes=2\nEndpoint=a\nElastic=yes\n", "Elastic=yes needs Nodes=LEAST:MOST"),
        ("[Train a]\nScript=/a\nEndpoint=*:29500\n", "is no host that others can reach"),
        (
            "[Train]\nScript=/a\nNodes=2\nEndpoint=a:1\n[Train a]\n[Train b]\n".replace("Script=/a\n", "", 1)
            + "Script=/b\n[Train a]\nScript=/a\n",
            "[Train b] Endpoint=a:1: [Train a] meets at a:1 too; give each job a port of its own",
        ),
        ("[Train a]\nScript=/a\nRestart=maybe\n", "allowed: no, on-success"),
        ("[Train a]\nScript=/a\nNUMAPolicy=local\nNUMAMask=0\n", "NUMAMask= has no meaning"),
        ("[Train a]\nScript=/a\nService.CPUAffinity=1\n", "use CPUs="),
        ("[Train a]\nScript=/a\nService.=1\n", "is not Service.KEY"),
        ("[Train a]\nScript=/a\nService.LimitNofile=1\n", "no LimitNofile= in [Service]; did you mean LimitNOFILE?"),
        ("[Train]\nService.MemoryMx=1G\n", "/1.conf:2: [Train] Service.MemoryMx=: systemd knows no MemoryMx="),
        ("[Infer a]\nModel=/m\nService.Requires=b.service\n", "no Requires= in [Service]"),
        ("[Train a]\nScript=/a\nService.Type=oneshot\n", "it decides when a service has started"),
        ("[Train a]\nScript=/a\nService.KillMode=mixed\n", "it would kill processes that still save"),
        ("[Train a]\nScript=/a\nService.TimeoutSec=5\n", "use CheckpointGrace="),
        ("[Infer a]\n", "has nothing to serve"),
        ("[Infer a]\nModel=/m\nTLSKey=/k\n", "TLSKey= needs TLSCertificate= beside it"),
        ("[Infer a]\nModel=/m\nListen=db.example:80\n", "has the name 'db.example'; write the address as a number"),
        ("[Infer a]\nModel=/m\nListen=1.2.3.4:0\n", "is not ADDRESS:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    """Each mistake has its message."""
    assert any(message in problem for problem in problems(text))


@pytest.mark.parametrize("key", ["MemoryMax", "MemoryHigh"])
@pytest.mark.parametrize("size", ["0", "0%", "0.00%", "0.4", "0.0001K", "000"])
def test_a_limit_that_systemd_ignores_is_refused(key: str, size: str) -> None:
    """It says "out of range, ignoring", and the service would have all of the memory."""
    (problem,) = problems(f"[Train a]\nScript=/a\n{key}={size}\n")
    assert f"{key}={size}: '{size}' is no limit for systemd, which ignores it" in problem
    assert read(f"[Train a]\nScript=/a\n{key}=0.01%\n") and read(f"[Infer a]\nModel=/a\n{key}=1\n")


@pytest.mark.parametrize("key", ["User", "Group"])
def test_a_number_that_is_nobodys_is_refused(key: str) -> None:
    """systemd starts no unit with one; the others may be without a name."""
    for number in ("65535", "4294967295", "4294967296", "01000", "00", "9" * 250):
        (problem,) = problems(f"[Train a]\nScript=/a\n{key}={number}\n")
        assert "is a number that systemd takes for no user or group" in problem
    for number in ("0", "1000", "65534", "65536", "4294967294", "1000a"):
        assert read(f"[Train a]\nScript=/a\n{key}={number}\n")


def test_what_no_host_or_interface_is_called_is_refused() -> None:
    """Where jobs meet, where services listen, and by what."""
    for host in ("0.0.0.0", "[::]:1", "224.0.0.1:1", "255.255.255.255", "-a", "a-.b", "..", "a..b", "256.1.1.1", "1.2"):
        (problem,) = problems(f"[Train a]\nScript=/a\nEndpoint={host}\n")
        assert "is no host that others can reach" in problem
    names = ("a", "a.", "a-b.example:1", "localhost", "1a", "a.1b", "node.1", "gpu.01:1")
    for host in (*names, "10.0.0.1", "[fe80::1]:1"):
        assert read(f"[Train a]\nScript=/a\nEndpoint={host}\n")
    (problem,) = problems("[Train a]\nScript=/a\nInterface=enp129s0f0np0d1\n" + "Interface=enp129s0f0np0d12\n")
    assert problem.startswith("/1.conf:4: ") and "longer than the 15 characters" in problem
    for address in ("224.0.0.1", "[ff02::1]", "255.255.255.255"):
        assert any("the address of many" in each for each in problems(f"[Infer a]\nModel=/m\nListen={address}:80\n"))


# Each value that is an error though a host may have run with it, and what of the service it is.
USELESS: list[tuple[str, str, object]] = [
    ("[Train a]\nScript=/a\nMemoryMax=0", "memory_max", None),
    ("[Train a]\nScript=/a\nMemoryHigh=0%", "memory_high", None),
    ("[Train a]\nScript=/a\nUser=65535", "user", "65535"),
    ("[Train a]\nScript=/a\nGroup=01000", "group", "01000"),
    ("[Train a]\nScript=/a\nInterface=enp129s0f0np0d12", "interface", "enp129s0f0np0d12"),
    ("[Train a]\nScript=/a\nEndpoint=0.0.0.0:29400", "endpoint", "0.0.0.0:29400"),
    ("[Train a]\nScript=/a\nEndpoint=a-.b", "endpoint", "a-.b"),
    ("[Infer a]\nModel=/m\nListen=*:80 224.0.0.1:81", "listen", ("[::]:80", "224.0.0.1:81")),
]


@pytest.mark.parametrize(("text", "field", "value"), USELESS)
def test_a_useless_value_that_is_in_force_keeps_nothing_from_a_boot(text: str, field: str, value: object) -> None:
    """One that an older version let through stays as it was, also where the host has other hardware by now."""
    config = parse_config([ConfFile("/c", f"{text}\n[Train b]\nScript=/b\n", applied=True)], HOST)
    assert len(config.services) == 2 and getattr(config.services[0].settings, field) == value
    (note,) = config.notes
    number, line = text.count("\n") + 1, text.rpartition("\n")[2]
    assert str(note).startswith(f"/c:{number}: ") and line in str(note)
    assert str(note).endswith("; it stays so, as this was in force before")
    assert any(line in problem for problem in problems(f"{text}\n"))


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", CpuRequest(CpuRequestKind.AUTO)),
        ("shared", CpuRequest(CpuRequestKind.SHARED)),
        ("4", CpuRequest(CpuRequestKind.COUNT, count=4)),
    ],
)
def test_a_single_number_of_cpus_counts_cores(text: str, request_: CpuRequest) -> None:
    """CPUs=4 is four whole cores, CPUs=4-4 is CPU 4."""
    assert read(f"[Train a]\nScript=/a\nCPUs={text}\n").services[0].settings.cpus == request_


def test_a_string_that_no_kernel_takes_is_an_error_with_its_line() -> None:
    """An argument, and a variable with its name."""
    value = "x" * 131_072
    one = f"[Train a]\nScript=/a\nArguments=y {value}\nEnvironment=A={value[:-3]}\nEnvironment=B={value[:-2]}\n"
    found = problems(one)
    assert [problem[:40] for problem in found] == [
        "/1.conf:3: [Train a] Arguments=: 'xxxxxx",
        "/1.conf:5: [Train a] Environment=: 'B=xx",
    ]
    assert all("the kernel takes 131,071 in one string" in problem and len(problem) < 250 for problem in found)


def test_directives_of_systemd_pass_through_in_order_until_reset() -> None:
    """Service.KEY= is for what torchpar does not decide."""
    config = read("[Train]\nService.Nice=5\n[Train a]\nScript=/a\nService.Nice=\nService.Nice=7\nService.LimitCORE=0\n")
    assert config.services[0].directives == (("Nice", "7"), ("LimitCORE", "0"))


def test_what_is_in_force_is_read_as_far_as_it_is_understood() -> None:
    """An upgrade may know fewer names; a host that has lost a CPU still gets its placement, with the rest of the conf.

    What this file brings besides, as `torchpar run` does, is judged as ever.
    """
    text = "[Train a]\nScript=/a\nThread=1\nThreads=2\nService.Foo=1\nService.KillMode=none\nService.x=1\n[Tran b]\n"
    assert [line.partition(": ")[0] for line in problems(text)] == [f"/1.conf:{number}" for number in (3, 5, 6, 7, 8)]
    config = parse_config([ConfFile("/1.conf", text, applied=True)], HOST)
    assert [str(note).partition(": ")[0] for note in config.notes] == [f"/1.conf:{number}" for number in (3, 5, 7, 8)]
    assert all("passed over" in note for note in config.warnings)
    (service,) = config.services
    assert service.settings.threads == 2 and service.directives == (("KillMode", "none"),)
    own = ConfFile("/2.conf", "[Train c]\nScript=/\nCPU=1\n")
    with pytest.raises(ConfigError) as error:
        parse_config([ConfFile("/1.conf", text, applied=True), own], HOST)
    assert [line.partition(": ")[0] for line in error.value.problems] == ["/2.conf:3"]
    with pytest.raises(ConfigError):
        parse_config([ConfFile("/1.conf", "[Train a]\nScript=/a\nThreads=x\n", applied=True)], HOST)


def test_a_unit_with_other_files_is_told_what_they_must_have() -> None:
    """It is the administrator's choice, so it is in force; but not without a word."""
    assert len(read("[Train a]\nScript=/a\nService.RootDirectory=/srv/image\n").warnings) == 1


def test_every_default_is_what_its_own_text_parses_to() -> None:
    """The table says the default once, for people and for the program."""
    for section in SECTIONS.values():
        for setting in settings_of(section):
            if setting.default:
                assert getattr(section(), setting.field) == setting.parse(setting.default), setting.key


def test_services_are_sorted_whatever_their_order_in_the_files() -> None:
    """The order of sections means nothing."""
    one = read("[Train b]\nScript=/b\n[Infer a]\nModel=/m\n[Train a]\nScript=/a\n")
    assert [service.unit for service in one.services] == [
        "torchpar-infer@a.service",
        "torchpar-train@a.service",
        "torchpar-train@b.service",
    ]


KINDS = {"Match": "[Match]\n", "Host": "[Host]\n", "Train": "[Train a]\nScript=/a\n", "Infer": "[Infer a]\nModel=/m\n"}
# One key for each parser.
KEYS = {setting.parse: (kind, setting.key) for kind, section in SECTIONS.items() for setting in settings_of(section)}


@pytest.mark.parametrize("part", ["9", "\\", "a ", '"', "0-8191:1/2,", "1s ", ">= 1 ", "–", "%h"])
def test_a_value_of_any_size_is_answered_in_a_line(part: str) -> None:
    """In time that grows with it and no faster: a quadratic parser takes hours for these."""
    for kind, key in KEYS.values():
        for value in (part * (200_000 // len(part)), f"{part * 400}%", f"{part * 400}G"):
            try:
                lines = read(f"{KINDS[kind]}{key}={value}\n").warnings
            except ConfigError as error:
                lines = error.problems
            assert all(len(line) < 1000 for line in lines), (key, value[:20])


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"[Train a{n}]\n" for n in range(30_000)),
        "".join(f"[Trian a{n}]\n" for n in range(30_000)),
        "[Train a]\n" + "".join(f"Thread{n}=1\n" for n in range(30_000)),
        "[Train a]\nScript=/a\nArguments=" + "x \\\n" * 100_000,
        "[Train a]\nScript=/a\n" + "Environment=A=1\n" * 20_000,
        "[Train a]\nScript=/a\n" + "Service.Nice=1\n" * 15_000 + "Service.LimitCORE=\n" * 20_000,
        "[Train a]\nScript=/a\n" + "Arguments=%h\n" * 20_000,
        "[Train]\n" + "Environment=A=1\n" * 20_000 + "".join(f"[Train a{n}]\nScript=/a\n" for n in range(900)),
        "[Match]\n" + "Host=a* b*\n" * 20_000,
        "[Train a]\n" + "A" * 900_000 + "=1\n",
        "[" * 900_000,
        "[Train " + "a" * 900_000 + "]\nThreads=x\n",
        "\ufeff" * 300_000,
        "\0" * 900_000,
        "\n" * 900_000,
        "\\\n" * 450_000,
    ],
    ids=lambda text: repr(text[-20:]),
)
def test_a_file_of_the_largest_size_is_answered(text: str) -> None:
    """With no more lines than anybody reads, and none that is longer."""
    try:
        lines = read(text).warnings
    except ConfigError as error:
        lines = error.problems
    assert len(lines) <= 101 and all(len(line) < 1000 for line in lines)


@given(st.text(max_size=200))
def test_no_text_is_too_strange_to_be_answered(text: str) -> None:
    """Whatever a file holds gives a Config or problems with places, never another error."""
    try:
        read("[Train a]\n" + text)
    except ConfigError as error:
        assert all(problem.startswith("/1.conf:") for problem in error.problems)


def test_a_file_may_be_called_what_it_likes() -> None:
    """The place of a problem is a value: nobody looks for it in the text again."""
    files = [ConfFile(name, "\n[Trian x]\n[Train a]\n") for name in ("/b: c.conf", "/a:1: d.conf", "/a\nb.conf")]
    with pytest.raises(ConfigError) as error:
        parse_config(files, HOST)
    assert error.value.problems == (
        "/b: c.conf:2: unknown section [Trian x]; did you mean Train?",
        "/b: c.conf:3: [Train a] has nothing to run; set Script=/path/to/train.py or Module=NAME",
        "/a:1: d.conf:2: unknown section [Trian x]; did you mean Train?",
        "/a\\nb.conf:2: unknown section [Trian x]; did you mean Train?",
    )


def test_a_name_that_is_too_long_for_a_file_is_refused() -> None:
    """systemd names folders after a service."""
    assert read(f"[Train {'a' * 100}]\nScript=/a.py\n").services
    assert "at most 100 letters" in problems(f"[Train {'a' * 200}]\nScript=/a.py\n")[0]


def test_a_list_of_thousands_is_read_in_time() -> None:
    """Each line of it adds to what is there."""
    (service,) = read("[Train a]\nScript=/a.py\n" + "Environment=A=1\n" * 10_000).services
    assert len(service.settings.environment) == 10_000


@pytest.mark.parametrize(
    "line",
    ["Host=!other", "Host=debian,other", "Host=gpu[0-9]+", "Host=gpu{1,2}", "Architecture=x86_46", "Architecture=!x86"],
)
def test_a_match_that_can_never_hold_is_an_error(line: str) -> None:
    """It would switch its file off, and take what runs out of force."""
    (problem,) = problems(f"[Match]\n{line}\n[Train a]\nScript=/a.py\n")
    assert f"[Match] {line}: " in problem and ("which no host can be called" in problem or "no architecture" in problem)


@pytest.mark.parametrize("line", ["Host=gpu* node[0-9].example.org web-?[!ab]", "Architecture=amd64 arm64 loong64"])
def test_a_match_names_hosts_and_architectures(line: str) -> None:
    """With the signs of the shell."""
    assert read(f"[Match]\n{line}\n")


@pytest.mark.parametrize("name", ["a.service", "x.socket", "a.timer"])
def test_a_name_that_systemd_would_take_apart_is_an_error(name: str) -> None:
    """systemctl start torchpar-train@a.service means the service a."""
    assert f"[Train {name}]: " in problems(f"[Train {name}]\nScript=/a.py\n")[0]


def test_what_a_backslash_at_the_end_of_a_line_swallows_is_noted() -> None:
    """As in a unit, the next line is part of the value, whatever it looks like."""
    config = read("[Train a]\nScript=/a.py\nArguments=--x \\\nUser=ml\nEnvironment=A=1 \\\n  B=2\nModule=\\\n")
    assert config.warnings == (
        "/1.conf:4: 'User=' is part of the value of the line before, which ends in a \\",
        "/1.conf:7: the last line ends in a \\, and there is none to go on in",
    )
    (service,) = config.services
    assert service.settings.user is None and service.settings.environment == ("A=1", "B=2")


def test_a_comment_behind_arguments_is_noted() -> None:
    """The script would get it."""
    config = read("[Train a]\nScript=/a.py\nArguments=--a 1 # mine\n")
    assert "character 17: '#' is an argument here; a comment stands on a line of its own" in config.warnings[0]


def test_the_variable_of_torchpar_itself_is_not_the_confs() -> None:
    """The job would not find its place."""
    assert "sets TORCHPAR_JOB" in problems("[Train a]\nScript=/a.py\nEnvironment=TORCHPAR_JOB=x\n")[0]


def test_a_name_that_was_let_through_once_keeps_nothing_else_from_a_boot() -> None:
    """In a conf that an older version has applied, that one service is passed over."""
    text = "[Train a:b]\nScript=/a.py\n[Train c]\nScript=/c.py\n"
    config = parse_config([ConfFile("/c", text, applied=True)], make_host())
    assert [service.name for service in config.services] == ["c"]
    assert config.warnings[0].startswith("/c:1: [Train a:b]: a service's name has no ':'")
