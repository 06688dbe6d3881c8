"""Unit text: the whole drop-in, its quoting, and what is left out."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, assume, given, reject
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.unit.hosts import make_gpu, make_host
from tests.unit.unit_file import read_unit
from torchpar.conf.characters import NOT_TEXT
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import simple_path
from torchpar.conf.words import split_words
from torchpar.contract.errors import ConfigError, PlacementError
from torchpar.facts.topology import HostFacts
from torchpar.plan.plan import make_plan
from torchpar.plan.sandbox import write_paths
from torchpar.units.drop_ins import UnitSet, make_units
from torchpar.units.quoting import only_unit_text, quote_path, quote_word, whole_line

WHOLE = """\
# Made by torchpar from /etc/torchpar.conf. Do not edit; see: torchpar explain resnet
[Unit]
RequiresMountsFor=/srv/venv/bin/python3 "/srv/a b" /srv/100%%/train.py "/srv/100%% sure"
# Looks whether it failed for want of files that come late at boot.
OnFailure=torchpar-retry@%N.service
Conflicts=torchpar-train@other.service

[Service]
User=ml
WorkingDirectory=/srv/a b
ProtectSystem=full
ProtectHome=no
PrivateTmp=no
RestrictSUIDSGID=no
SystemCallFilter=@chown
KeyringMode=shared
UMask=0022
RemoveIPC=no
ReadWritePaths="/srv/100%% sure" -/mnt/x
CPUAffinity=
CPUAffinity=1-3
AllowedCPUs=
AllowedCPUs=1-3
AllowedMemoryNodes=
AllowedMemoryNodes=0
NUMAMask=
NUMAPolicy=bind
NUMAMask=0
# Without the template unit's, which are of a user without a home.
Environment=
Environment=PYTHONUNBUFFERED=1
Environment="A=two words"
Environment=GOMP_SPINCOUNT=50000
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4
Environment=OMP_NUM_THREADS=3
Environment=OPENBLAS_NUM_THREADS=3
Environment=TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD=1099511627776
Environment=TCMALLOC_RELEASE_RATE=0
Environment=TORCHINDUCTOR_COMPILE_THREADS=3
Environment='TORCHPAR_JOB={"checkpoint_grace":60,"cudnn_benchmark":null,"elastic":false,"endpoint":null,\
"interface":null,"interop_threads":1,"max_restarts":0,"memory_policy":"bind","nodes":"1",\
"pin_memory":null,"prefetch_factor":null,\
"ranks":[{"budget":3,"cpus":"1-3","gpus":[],"loader_workers":0,"local_rank":0,"numa_nodes":"0","threads":3}],\
"service":"torchpar-train@resnet.service"}'
Environment=TORCHPAR_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4
ExecStartPre=
ExecStart=
ExecStart=:/srv/venv/bin/python3 /usr/lib/torchpar/run.py -- /srv/100%%/train.py --epochs 90 "$HOME and %%h"
ExecStop=
ExecStop=:/usr/lib/torchpar/stop 60
MemoryMax=8G
Restart=on-failure
TimeoutStopSec=75s
PrivateDevices=yes
Nice=5
"""

CONF = """
[Train resnet]
Script=/srv/100%/train.py
Arguments=--epochs 90 '$HOME and %h'
Python=/srv/venv/bin/python3
User=ml
WorkingDirectory=/srv/a b
ReadWritePaths='/srv/100% sure' -/mnt/x
Environment="A=two words"
MemoryMax=8G
CheckpointGrace=1min
Service.Nice=5
Slot=s
Enabled=yes
[Train other]
Script=/srv/other.py
Slot=s
"""


def units_of(text: str, facts: HostFacts) -> UnitSet:
    """The rendered units of a conf."""
    return make_units(make_plan(parse_config([ConfFile("/etc/torchpar.conf", text)], facts), facts))


def test_a_drop_in_is_what_the_manual_shows() -> None:
    """Every key in its place: lists reset, % doubled, words quoted, nothing expanded."""
    units = units_of(CONF, make_host())
    assert units.files["torchpar-train@resnet.service.d/20-torchpar.conf"] == WHOLE
    assert units.links == {
        "torchpar.target.wants/torchpar-train@resnet.service": "/usr/lib/systemd/system/torchpar-train@.service"
    }


def test_an_edit_elsewhere_in_the_conf_changes_nothing_here() -> None:
    """No line numbers, no timestamps: the same inputs give the same bytes."""
    before = units_of("[Train a]\nScript=/a.py\n", make_host()).files
    after = units_of("# a comment\n[Host]\n\n[Train a]\nScript=/a.py\n", make_host()).files
    assert before == after


def test_the_order_of_sections_changes_nothing() -> None:
    """Placement goes by names, not by where they stand."""
    a, b = "[Train a]\nScript=/a.py\nEnabled=yes\n", "[Train b]\nScript=/b.py\nEnabled=yes\n"
    assert units_of(a + b, make_host()).files == units_of(b + a, make_host()).files


def test_a_directive_that_this_systemd_lacks_is_left_out_and_named() -> None:
    """systemd 252 would log an unknown key at every reload."""
    text = "[Train a]\nScript=/a.py\nService.RestartSteps=5\n"
    new, old = (units_of(text, make_host(systemd_version=version)) for version in (257, 252))
    assert any("RestartSteps=5" in text for text in new.files.values()) and not new.warnings
    assert not any("RestartSteps" in text for text in old.files.values())
    assert old.warnings[0].startswith("/etc/torchpar.conf:3: [Train a] Service.RestartSteps= needs systemd 254")


def test_a_line_that_systemd_does_not_read_is_refused() -> None:
    """A unit with a line of 1 MiB is not loaded at all."""
    with pytest.raises(PlacementError) as error:
        units_of(f"[Train a]\nScript=/a.py\nService.SetCredential=a:{'x' * 2**20}\n", make_host())
    assert str(error.value) == (
        "/etc/torchpar.conf:3: [Train a] Service.SetCredential=: the line of the unit has 1,048,592 bytes, and systemd "
        "takes 1,048,575; use a file instead"
    )


def test_several_ranks_start_through_the_launcher_under_the_jobs_interpreter() -> None:
    """It is torchrun's agent of that interpreter's torch that starts them."""
    text = units_of("[Train a]\nModule=pkg.train\nRanks=2\n", make_host()).files.popitem()[1]
    assert "ExecStart=:/usr/bin/python3 /usr/lib/torchpar/launch.py -m pkg.train\n" in text


@pytest.mark.parametrize(("devices", "allowed"), [((), False), (("mlx5_0",), True)])
def test_rdma_devices_are_there_where_network_cards_have_them(devices: tuple[str, ...], allowed: bool) -> None:
    """The connection manager by its path, as it shares its driver with others; the cards by theirs, everywhere."""
    nic = dataclasses.replace(make_gpu(0, 0), class_code="0x020000", infiniband=devices)
    texts = units_of("[Train a]\nScript=/a.py\n[Infer a]\nModel=/m.pt\n", make_host(nics=(nic,))).files
    line = "DeviceAllow=/dev/infiniband/rdma_cm rw\n"
    assert (line in texts["torchpar-train@a.service.d/20-torchpar.conf"]) is allowed
    assert line not in texts["torchpar-infer@a.service.d/20-torchpar.conf"]


def test_a_host_without_devices_to_compute_on_shows_none() -> None:
    """What a template unit allows is not there to be allowed; one more in the conf is."""
    card = dataclasses.replace(make_gpu(0, 0), class_code="0x020000", infiniband=("mlx5_0",))
    other = dataclasses.replace(make_gpu(0, 0), vendor="0x1da3", class_code="0x120000")
    for facts, line, private in (
        (make_host(), "", True),
        (make_host(), "Service.DeviceAllow=/dev/fuse rw", False),
        (make_host(gpu_nodes=(0,)), "", False),
        (make_host(nics=(card,)), "", False),
        (dataclasses.replace(make_host(), gpus=(other,)), "", False),
    ):
        for text in (f"[Train a]\nScript=/a.py\n{line}\n", f"[Infer a]\nModel=/m.pt\n{line}\n"):
            units = units_of(text, facts).files
            assert any("PrivateDevices=yes\n" in unit for unit in units.values()) is private


INFER = "[Infer a]\nModel=/m.pt\n"


def test_an_inference_service_has_its_server_and_a_socket() -> None:
    """Started and reloaded by the service's interpreter; systemd holds the addresses, by default where only this host
    reaches them."""
    units = units_of(f"{INFER}Python=/v/bin/python\nDrainTimeout=1min\nDrainDelay=5s\nEnabled=yes\n", make_host())
    text = units.files["torchpar-infer@a.service.d/20-torchpar.conf"]
    assert "ExecStartPre=\nExecStart=\nExecStart=:/v/bin/python /usr/lib/torchpar/serve.py\n" in text
    assert "ExecReload=\nExecReload=:/v/bin/python /usr/lib/torchpar/serve.py reload\n" in text
    assert "CPUAffinity=1-3" in text and "TimeoutStopSec=75s" in text and "LoadCredential" not in text
    assert units.files["torchpar-infer@a.socket.d/20-torchpar.conf"] == (
        "# Made by torchpar from /etc/torchpar.conf. Do not edit; see: torchpar explain a\n"
        "[Socket]\nExecStartPre=\n"
        "# A child of systemd that clears the stopped service's /tmp still holds the old socket, for milliseconds.\n"
        "ExecStartPre=/bin/sleep 0.1\nListenStream=\nListenStream=127.0.0.1:8000\n"
    )
    assert len(units.files) == 2 and list(units.links) == ["torchpar.target.wants/torchpar-infer@a.service"]


def test_the_socket_has_every_address_and_the_server_knows_which_are_for_grpc() -> None:
    """So a restart refuses no connection over either."""
    units = units_of(f"{INFER}Listen=*:80 localhost:81\nListen=grpc:0.0.0.0:90 [::1]:082\n", make_host())
    socket = units.files["torchpar-infer@a.socket.d/20-torchpar.conf"]
    listen = [line for line in socket.splitlines() if line.startswith("ListenStream=")]
    assert [line.partition("=")[2] for line in listen] == ["", "[::]:80", "127.0.0.1:81", "[::1]:82", "0.0.0.0:90"]
    assert '"grpc":["0.0.0.0:90"]' in units.files["torchpar-infer@a.service.d/20-torchpar.conf"]


def test_a_socket_of_a_slot_stops_with_its_service() -> None:
    """Left open, the next request would start the service again, and so stop the one whose turn it is."""
    text = f"{INFER}Slot=s\n[Train b]\nScript=/b.py\nSlot=s\n"
    socket = units_of(text, make_host()).files["torchpar-infer@a.socket.d/20-torchpar.conf"]
    assert "[Unit]\nConflicts=torchpar-train@b.service\n\n[Socket]" in socket


def test_certificate_and_key_come_as_credentials() -> None:
    """systemd reads them as root: the key need not be the service's to read."""
    units = units_of(f"{INFER}TLSCertificate=/etc/ssl/100%.pem\nTLSKey=/etc/ssl/private/a.key\n", make_host())
    text = units.files["torchpar-infer@a.service.d/20-torchpar.conf"]
    assert "LoadCredential=tls-certificate:/etc/ssl/100%%.pem\n" in text
    assert "LoadCredential=tls-key:/etc/ssl/private/a.key\n" in text


def test_a_service_with_accelerators_keeps_the_hosts_groups() -> None:
    """In a user namespace of its own the render and video groups are gone."""
    units = units_of("[Infer a]\nModel=/a.pt\n", make_host(gpu_nodes=(0,)))
    assert "PrivateUsers=no\n" in units.files["torchpar-infer@a.service.d/20-torchpar.conf"]


@given(st.text(min_size=1).map(lambda text: text.replace("\0", "0")))
def test_a_quoted_word_reads_back_as_itself(text: str) -> None:
    """systemd splits as the conf is split, and then halves each %."""
    quoted = quote_word(text)
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", quoted)
    if not NOT_TEXT.search(text):
        assert [word.replace("%%", "%") for word in split_words(quoted)] == [text]


def test_a_tab_within_quotes_stays_one() -> None:
    """The conf may hold it, so the unit must."""
    text = units_of("[Train a]\nScript=/a.py\nArguments=\t--x\t'a\tb'\n", make_host()).files.popitem()[1]
    assert 'run.py -- /a.py --x "a\tb"\n' in text


@pytest.mark.parametrize("text", ["a\nExecStart=/bin/evil", "\x7f", "\r", "\x1b[2J"])
def test_control_characters_are_escaped_in_a_unit(text: str) -> None:
    """A newline in a value would be another directive."""
    quoted = quote_word(text)
    assert quoted.isprintable() and split_words(quoted) == (text,)


PIECES = ["a", "=", "/", "#", ";", "[Unit]", "\\", "\\", "\\\\", "%", "%n", "'", '"', " ", "\t"]
VALUES = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@limits(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(VALUES, VALUES, VALUES, VALUES, VALUES)
def test_no_value_is_more_or_less_than_one(folder: str, key: str, mount: str, word: str, own: str) -> None:
    """Whatever a conf that is accepted says, each line of the unit has the key and the value that were meant."""
    conf = (
        f"[Infer a]\nModel=/m{word}\nWorkingDirectory=/srv/w{folder}\nTLSKey=/k{key}\nTLSCertificate=/c{key}\n"
        f"ReadWritePaths=/d{mount}\nService.SyslogIdentifier=s{own}\nService.Nice=5\nService.SetCredential=x:{own}\n"
    )
    facts = make_host()
    try:
        config = parse_config([ConfFile("/c", conf)], facts)
        plan = make_plan(config, facts)
    except (ConfigError, PlacementError):
        reject()
    files = make_units(plan).files
    (declared,) = config.services
    settings, directives, infer = declared.settings, declared.directives, declared.infer()
    # A backslash at the end of a line of the conf has it go on in the next.
    assume(settings.working_directory and infer and infer.tls_key and infer.tls_certificate and directives)
    assert infer and infer.tls_key and infer.tls_certificate
    read = list(read_unit(files["torchpar-infer@a.service.d/20-torchpar.conf"]))
    assert {section for section, _, _ in read} == {"Unit", "Service"}
    assert all(re.fullmatch("[A-Za-z]+", name) for _, name, _ in read)
    service = [(name, value) for section, name, value in read if section == "Service"]
    plain = [(name, value.replace("%%", "%")) for name, value in service]
    assert service[-len(directives) :] == [(name, value) for name, value in directives]
    assert [value for name, value in plain if name == "WorkingDirectory"] == [settings.working_directory]
    assert [value for name, value in plain if name == "LoadCredential"] == [
        f"tls-certificate:{simple_path(infer.tls_certificate)}",
        f"tls-key:{simple_path(infer.tls_key)}",
    ]
    (paths,) = [value for name, value in service if name == "ReadWritePaths"]
    assert [path.replace("%%", "%").lstrip("-") for path in split_words(paths)] == [
        path.lstrip("-") for path in write_paths(declared)
    ]
    guard = list(read_unit(files["torchpar-guard@torchpar-infer@a.service.d/20-torchpar.conf"]))
    assert [name for _, name, _ in guard] == ["RequiresMountsFor", "ExecStart", "ExecStart"]


@pytest.mark.parametrize("text", ["/srv/a\\", "\\", "a\\\\\\"])
def test_a_value_that_the_next_line_would_go_on_in_is_no_text_for_a_unit(text: str) -> None:
    """Where it stands as it is; within quotes a backslash is escaped."""
    for quote in (quote_path, whole_line):
        with pytest.raises(ValueError, match="ends in a backslash"):
            quote(text)
        assert quote(text + "\\") == text + "\\"
    assert split_words(quote_word(text)) == (text,)


@pytest.mark.parametrize("text", [" a", "a\t", ""])
def test_a_value_of_a_whole_line_has_no_blanks_that_would_be_lost(text: str) -> None:
    """systemd takes them away; an empty value resets."""
    if text:
        with pytest.raises(ValueError, match="blanks at an end"):
            whole_line(text)
    else:
        assert whole_line(text) == ""


@pytest.mark.parametrize("key", ["WorkingDirectory", "TLSKey", "TLSCertificate", "Model"])
@pytest.mark.parametrize("path", ["/a\\/", "/a\t/", "/a //", "/a\\/.", "/a\\\\"])
def test_a_path_that_no_unit_keeps_is_refused_where_it_stands(key: str, path: str) -> None:
    """Without the slash at its end it would go on in the next line, or end too early."""
    with pytest.raises(ConfigError, match=f"/c:2: .Infer a. {key}=.*ends in a blank or a backslash"):
        parse_config([ConfFile("/c", f"[Infer a]\n{key}={path}\n")], make_host())


def test_nothing_else_gets_into_a_unit() -> None:
    """A template file that forgets to say how a value is to be written makes no unit."""
    with pytest.raises(TypeError, match="written into a unit without one of"):
        only_unit_text("a")
    assert only_unit_text(whole_line("a")) == "a"


@pytest.mark.parametrize("text", ["a\nExecStart=/bin/evil", "\0", "\x7f", "\r"])
def test_control_characters_never_reach_a_value_without_escapes(text: str) -> None:
    """What systemd takes as a whole line has none."""
    with pytest.raises(ValueError, match="control character"):
        quote_path(text)


def test_plain_words_stay_as_they_are() -> None:
    """What an administrator reads should look like what was written."""
    assert quote_word("--lr=0.1") == "--lr=0.1"
    assert quote_word("two words") == '"two words"'


def test_a_job_of_several_hosts_has_no_start_limit() -> None:
    """A host that starts before the others fails and tries again for as long as they need."""
    conf = "[Train a]\nScript=/a.py\nNodes=2\nEndpoint=gpu1\n[Train b]\nScript=/b.py\n"
    several, one = units_of(conf, make_host()).files.values()
    assert "StartLimitIntervalSec=0\n\n[Service]\n" in several and "StartLimit" not in one


def test_a_share_of_the_memory_is_written_as_it_is() -> None:
    """systemd expands nothing in it, so a doubled percent sign is no size to it."""
    units = units_of("[Train a]\nScript=/a.py\nMemoryMax=50%\nMemoryHigh=25%\n", make_host())
    text = units.files["torchpar-train@a.service.d/20-torchpar.conf"]
    assert "MemoryMax=50%\nMemoryHigh=25%\n" in text


def test_a_service_that_systemd_could_not_bind_to_its_cpus_is_allowed_them_alone() -> None:
    """Whatever else keeps it from them may leave some."""
    host = make_host(without={"torchpar-train@a.service": 215})
    (text,) = (text for path, text in units_of("[Train a]\nScript=/a.py\n", host).files.items())
    assert re.search(r"^CPUAffinity=\nAllowedCPUs=\nAllowedCPUs=\d", text, re.M)
