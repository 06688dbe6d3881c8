"""What keeps a service's user from its files, as a person is told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import simple_path
from torchpar.plan.access import make_questions, make_warnings, silent_paths
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

ML = Identity("ml")
TORCHPAR = Identity("torchpar")
HOME = Answer(Verdict.CLOSED, "/home/ml", 0o750, "ml", "ml", "ml")

def read(text: str) -> Config:
    """The conf /c of these lines."""
    return parse_config([ConfFile("/c", text)], make_host())


def told(text: str, found: Mapping[Identity, Found]) -> tuple[str, ...]:
    """The warnings for one training job with these further lines."""
    return make_warnings(read(f"[Train a]\nScript=/s.py\n{text}\n"), found)


def answers(identity: Identity, **by_need: tuple[str, Answer]) -> dict[Identity, Found]:
    """The host's answers for one identity: need=(path, answer)."""
    asked = {Question(path, Need[need]): answer for need, (path, answer) in by_need.items()}
    return {identity: Found(answers=asked)}


def test_a_private_home_is_told_with_the_folder_and_the_user_that_helps() -> None:
    """The folder that cannot be entered, who cannot, and each way out."""
    assert told("Python=/home/ml/venv/bin/python3", answers(TORCHPAR, RUN=("/home/ml/venv/bin/python3", HOME))) == (
        "/c:3: [Train a] Python=/home/ml/venv/bin/python3: user torchpar cannot enter /home/ml (mode 0750, ml:ml); "
        "set User=ml, whose home that is; or put it elsewhere",
    )


def test_a_link_that_leads_into_a_private_home_is_told_too() -> None:
    """A virtual environment outside, whose interpreter is in the home of whoever made it."""
    (warning,) = told("Python=/srv/venv/bin/python3", answers(TORCHPAR, RUN=("/srv/venv/bin/python3", HOME)))
    assert "cannot enter /home/ml (mode 0750, ml:ml), to which links lead; set User=ml" in warning


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(Verdict.MISSING, "/p"), "no such program on this host; the service fails until it is there"),
        (Answer(Verdict.MISSING, "/opt/x"), "no such program on this host: its links lead to /opt/x; the service"),
        (Answer(Verdict.REFUSED, "/p", 0o700, "root", "root"), "torchpar cannot execute /p (mode 0700, root:root)"),
        (Answer(Verdict.NOEXEC, "/p"), "/p is on a mount with noexec, from which nothing runs"),
        (Answer(Verdict.BROKEN, "/p", why="is not a program"), "Python=/p: is not a program; the service fails until"),
        (Answer(Verdict.SILENT), "its file system does not answer"),
        (Answer(Verdict.ALLOWED, "/p", shim=True, interpreter="/v/bin/python3"), "interpreter itself: /v/bin/python3"),
    ],
)
def test_each_answer_about_an_interpreter_has_its_words(answer: Answer, words: str) -> None:
    """One sentence that says what, where and what to do."""
    (warning,) = told("Python=/p", answers(TORCHPAR, RUN=("/p", answer)))
    assert warning.startswith("/c:3: [Train a] Python=/p: ") and words in warning


def test_a_path_that_is_written_in_a_roundabout_way_has_no_links() -> None:
    """Of which a message would speak in vain."""
    path = "/data//./own/"
    (warning,) = told(f"WorkingDirectory={path}", answers(TORCHPAR, ENTER=(path, Answer(Verdict.MISSING, "/data/own"))))
    assert "no such folder on this host; the service fails" in warning


def test_a_working_folder_that_cannot_be_written_is_told_before_the_first_checkpoint() -> None:
    """One warning, also where it cannot be entered at all."""
    where = "User=ml\nWorkingDirectory=/data"
    refused = Answer(Verdict.REFUSED, "/data", 0o755, "root", "root")
    (warning,) = told(where, answers(ML, ENTER=("/data", Answer(Verdict.ALLOWED, "/data")), WRITE=("/data", refused)))
    assert "user ml cannot write there (mode 0755, root:root)" in warning and "setfacl -m u:ml:rwx /data" in warning
    (warning,) = told(where, answers(ML, WRITE=("/data", Answer(Verdict.REFUSED, "/etc/x", 0o755, "root", "root"))))
    assert warning.endswith("fails; name another folder"), "who may write there may become root"
    closed = Answer(Verdict.CLOSED, "/data", 0o700, "root", "root")
    (warning,) = told(where, answers(ML, ENTER=("/data", closed), WRITE=("/data", closed)))
    assert "user ml cannot enter /data" in warning


def test_a_user_and_groups_that_are_not_there_are_told_where_they_stand() -> None:
    """Group= and SupplementaryGroups= as well."""
    identity = Identity("nosuch", "none", ("gone",))
    text = "User=nosuch\nGroup=none\nService.SupplementaryGroups=gone"
    assert [warning.partition(":")[2][:2] for warning in told(text, {identity: Found(True, ("none", "gone"))})] == [
        "3:",
        "4:",
        "5:",
    ]
    assert not told("", {TORCHPAR: Found(unknown_user=True)}), "the package's own user is not the conf's affair"


@pytest.mark.parametrize(
    ("directive", "path", "words"),
    [
        ("ProtectHome=yes", "/home/ml/s.py", "Service.ProtectHome=yes hides /home"),
        ("ProtectHome=tmpfs", "/root/s.py", "Service.ProtectHome=tmpfs hides /root"),
        ("ProtectHome=read-only", "/home/ml/s.py", ""),
        ("PrivateTmp=no", "/tmp/s.py", ""),
        ("Nice=1", "/tmp/s.py", ""),
        ("PrivateTmp=yes", "/tmp/s.py", "the service has /tmp of its own; put it elsewhere, or set Service.PrivateTmp"),
        ("PrivateTmp=yes", "/var/tmp/s.py", "the service has /var/tmp of its own"),
        ("InaccessiblePaths=-/data /mnt", "/mnt/s.py", "Service.InaccessiblePaths= hides /mnt"),
        ("InaccessiblePaths=-/data /mnt", "/mnt2/s.py", ""),
    ],
)
def test_what_the_unit_hides_is_told_though_the_user_could_reach_it(directive: str, path: str, words: str) -> None:
    """The sandbox decides as much as modes do."""
    config = read(f"[Train a]\nScript={path}\nService.{directive}\n")
    warnings = make_warnings(config, answers(TORCHPAR, SCRIPT=(path, Answer(Verdict.ALLOWED, path, way=(path,)))))
    assert [words in warning for warning in warnings] == [True] * bool(words)


def test_a_unit_with_other_files_or_rights_is_not_judged_by_those_of_the_host() -> None:
    """RootDirectory= has other files; a capability may open what a mode does not."""
    closed = answers(TORCHPAR, SCRIPT=("/s.py", HOME))
    assert told("", closed)
    for directive in ("RootDirectory=/srv/image", "BindPaths=/a:/b", "AmbientCapabilities=CAP_DAC_READ_SEARCH"):
        assert not told(f"Service.{directive}", closed)


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ("", "/var/cache/torchpar/train/a/inductor"),
        ("User=ml", "/tmp"),
        ("User=ml\nEnvironment=TORCHINDUCTOR_CACHE_DIR=/data/x", "/data/x"),
        ("Environment=TORCHINDUCTOR_CACHE_DIR=/data/x", "/data/x"),
    ],
)
def test_the_compilers_cache_is_asked_for_where_it_is(lines: str, path: str) -> None:
    """A user other than torchpar's has PyTorch's own default."""
    asked = make_questions(read(f"[Train a]\nScript=/s.py\n{lines}\n"))[Identity(None)]
    assert [question.path for question in asked if question.need is Need.MAP] == [path]


def test_the_compilers_cache_on_a_mount_with_noexec_is_told_once() -> None:
    """What torch.compile makes is loaded from there."""
    answer = Answer(Verdict.NOEXEC, "/var")
    asked = {Question(f"/var/cache/torchpar/train/{name}/inductor", Need.MAP): answer for name in "ab"}
    found = {Identity(None): Found(answers=asked)}
    (warning,) = make_warnings(read("[Train a]\nScript=/a\n[Train b]\nScript=/b\n"), found)
    assert warning.startswith("/var is on a mount with noexec: a job that uses torch.compile")
    assert not told("Environment=TORCHINDUCTOR_CACHE_DIR=/data/x", found)


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ("User=ml\nWorkingDirectory=/usr/local/src/p", "", "ProtectSystem=full makes /usr read-only"),
        ("User=ml\nWorkingDirectory=/usr/local/src/p\nReadWritePaths=/usr/local/src", "", ""),
        ("User=ml\nWorkingDirectory=/usr/local/src/p\nService.ReadWritePaths=-/usr/local", "", ""),
        ("User=ml\nWorkingDirectory=/usr/local/src/p\nService.ProtectSystem=no", "", ""),
        ("User=ml\nWorkingDirectory=/srv/p", "/usr/share/p", "ProtectSystem=full makes /usr read-only"),
        ("User=ml\nWorkingDirectory=/srv/p", "", ""),
        ("User=ml\nWorkingDirectory=/srv/p\nService.ReadOnlyPaths=-/srv", "", "ReadOnlyPaths= makes /srv read"),
        ("User=ml\nWorkingDirectory=/srv/p\nService.ReadOnlyPaths=/srv\nService.ReadWritePaths=/srv/p", "", ""),
        ("User=ml\nWorkingDirectory=/home/ml\nService.ProtectHome=read-only", "", "ProtectHome=read-only makes /home"),
        ("User=ml\nWorkingDirectory=/srv/p\nService.ProtectSystem=strict", "", "ProtectSystem=strict makes / read"),
        ("WorkingDirectory=/usr/p", "", "ProtectSystem=strict makes / read-only"),
        ("WorkingDirectory=/srv/p", "", ""),
        ("WorkingDirectory=/srv//p/", "/data/p", ""),
        ("WorkingDirectory=/srv/p\nService.ReadOnlyPaths=/srv/p", "", "Service.ReadOnlyPaths= makes /srv/p read-only"),
        ("WorkingDirectory=/var/lib/torchpar/train/a/x", "", ""),
        ("User=ml\nService.ReadWritePaths=/etc/x", "", ""),
        ("ReadWritePaths=/tmp/x\nService.PrivateTmp=yes", "", "the service has /tmp of its own"),
        ("ReadWritePaths=/tmp/x", "", ""),
        ("ReadWritePaths=//.", "", "ProtectSystem=strict makes / read-only"),
        ("Service.ReadWritePaths=/", "", "ProtectSystem=strict makes / read-only"),
        ("ReadWritePaths=/\nService.ProtectSystem=no", "", ""),
        ("User=ml\nReadWritePaths=/", "", ""),
    ],
)
def test_what_the_unit_makes_read_only_is_told_though_the_user_may_write(lines: str, place: str, words: str) -> None:
    """Else the first checkpoint says it, after hours."""
    config = read(f"[Train a]\nScript=/s.py\n{lines}\n")
    found = {
        identity: Found(
            answers={
                question: Answer(Verdict.ALLOWED, at, way=(at,))
                for question in asked
                if question.need is Need.WRITE
                for at in [place or simple_path(question.path)]
            }
        )
        for identity, asked in make_questions(config).items()
    }
    assert [words in warning for warning in make_warnings(config, found)] == [True] * bool(words)


def test_what_has_no_answer_is_not_opened_by_anybody_else() -> None:
    """Neither the path that hangs nor those that come after it, unless another user has the answer."""
    dead, after, known = (Question(path, Need.RUN) for path in ("/nfs/python3", "/usr/bin/python3", "/bin/python3"))
    silent = Found(answers={dead: Answer(Verdict.SILENT)})
    assert silent_paths({ML: (dead, after)}, {ML: silent}) == {"/nfs/python3", "/usr/bin/python3"}
    found = {ML: silent, TORCHPAR: Found(answers={known: Answer(Verdict.ALLOWED)})}
    assert silent_paths({ML: (dead, known), TORCHPAR: (known,)}, found) == {"/nfs/python3"}


def test_certificates_are_read_by_systemd_and_not_by_the_user() -> None:
    """A key that is root's alone is as it should be."""
    questions = make_questions(read("[Infer a]\nModel=/m\nTLSCertificate=/c\nTLSKey=/k\n"))
    assert Question("/k", Need.READ) in questions[Identity(None)]
    assert [question.path for question in questions[TORCHPAR]] == ["/usr/bin/python3", "/m"]


def test_what_systemd_is_to_open_and_is_not_there_is_told_with_its_line() -> None:
    """Whatever the service itself sees."""
    path = Question("/etc/job.env", Need.THERE)
    text = "Service.PrivateTmp=yes\nService.EnvironmentFile=/etc/job.env"
    (warning,) = told(text, {Identity(None): Found(answers={path: Answer(Verdict.MISSING, "/etc/job.env")})})
    assert warning == (
        "/c:4: [Train a] Service.EnvironmentFile=/etc/job.env: no such file or folder on this host; the service fails "
        "until it is there"
    )
    assert not told(text, {Identity(None): Found(answers={path: Answer(Verdict.ALLOWED, "/etc/job.env")})})


def test_what_a_unit_shows_otherwise_has_to_be_there() -> None:
    """But for what begins with a -; what has specifiers or quotes is not guessed at."""
    lines = "ReadOnlyPaths=/a -/b +/c", "InaccessiblePaths=/d/%i", "ExecPaths=/e", "ReadWritePaths=/f '/g h' /i/%i"
    text = "".join(f"Service.{line}\n" for line in lines)
    asked = make_questions(read(f"[Train a]\nScript=/s.py\n{text}"))
    assert [question.path for question in asked[Identity(None)] if question.need is Need.THERE] == ["/a", "/e"]
    assert [question.path for question in asked[TORCHPAR] if question.need is Need.WRITE] == ["/f"]
