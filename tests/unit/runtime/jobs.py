"""A folder with a job's files, and a Python that starts them by run.py or without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

# Another interpreter can be named, to see what run.py does under a Python that is not Debian's.
PYTHON = os.environ.get("TEST_PYTHON", sys.executable)


@dataclass(frozen=True)
class Outcome:
    """How a process ended and what it wrote."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder that holds a job's files, and is its working directory."""

    path: Path
    launcher: Path

    def write(self, name: str, text: str) -> Path:
        """Put a file there, its text with the common indentation taken away."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def python(self, *command: str | Path, flags: tuple[str, ...] = (), stdin: str = "", **environ: str) -> Outcome:
        """Start the interpreter here and wait for its end."""
        done = subprocess.run(
            [PYTHON, *flags, *command],
            cwd=self.path,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )
        # Addresses differ from one start to the next.
        out, err = (re.sub(r"0x[0-9a-f]{8,}", "0xADDRESS", text) for text in (done.stdout, done.stderr))
        return Outcome(done.returncode, out, err)

    def launched(self, script: str | Path, *arguments: str, flags: tuple[str, ...] = (), **environ: str) -> Outcome:
        """Run a script by run.py."""
        return self.python(self.launcher, "--", script, *arguments, flags=flags, **environ)

    def same(
        self,
        script: str | Path,
        *arguments: str,
        module: bool = False,
        flags: tuple[str, ...] = (),
        stdin: str = "",
        **environ: str,
    ) -> Outcome:
        """Run a script, or a module, by the interpreter and by run.py: what both did, which must be the same."""
        bare = self.python(*["-m"] * module, script, *arguments, flags=flags, stdin=stdin, **environ)
        command = (self.launcher, "-m" if module else "--", script, *arguments)
        launched = self.python(*command, flags=flags, stdin=stdin, **environ)
        assert launched == bare
        return launched
