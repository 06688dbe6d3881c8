"""Waits in sys.meta_path for the script's import of torch, without importing it, and goes when that has happened.

Afterwards nothing of it is left in torch: its module, spec and loader are what they would be without it.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported, before the script's first line
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# By these OpenMP binds its threads, that of the import included, as soon as it is loaded.
BINDERS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


class TorchImport:
    """A finder that finds nothing by itself, and hears when torch's own module has been executed."""

    def __init__(self) -> None:
        self.process = os.getpid()
        # What the process may use before any library changes that: systemd's word, or that of `systemctl edit`.
        self.cpus = os.sched_getaffinity(0)
        self.missed = False

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """None, save for torch: what the other finders find, with a loader that calls `imported` in the end."""
        if name != "torch":
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(name, path, target)
            if spec:
                # A folder called torch that is no package has a loader that executes nothing, or none.
                if hasattr(spec.loader, "exec_module"):
                    spec.loader.exec_module = self.watched(spec.loader, spec.loader.exec_module)
                return spec
        self.missing()
        return None

    def missing(self) -> None:
        """Says it, once: the traceback that follows names neither the interpreter nor the key that decides it."""
        if self.missed or os.getpid() != self.process:
            return
        self.missed = True
        from torchpar.runtime.start.refusal import refusal

        os.write(2, f"torchpar: {refusal(sys.executable, 'this Python has no torch', 'Python=')}\n".encode())

    def watched(self, loader: "Any", execute: "Callable[[Any], None]") -> "Callable[[Any], None]":
        """Wraps exec_module of this one loader; the wrapper takes itself away before torch's own code runs."""

        def exec_module(module: "Any") -> None:
            loader.__dict__.pop("exec_module", None)
            if not any(name in os.environ for name in BINDERS):
                # Then it is still what was asked for, now perhaps by the script.
                self.cpus = os.sched_getaffinity(0)
            execute(module)
            # Only now: where the import fails, the script may try again.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.imported(module)

        # By these names the interpreter leaves the frame out of the traceback of an import that fails, as it does with
        # importlib's own (remove_importlib_frames in import.c), and a warning's stacklevel does not count it.
        exec_module.__code__ = exec_module.__code__.replace(
            co_filename="<frozen importlib._bootstrap>", co_name="_call_with_frames_removed"
        )
        return exec_module

    def imported(self, torch: "Any") -> None:
        """Sets torch as planned, in the job's own process and not in one that it forked."""
        if os.getpid() != self.process:
            return
        try:
            from torchpar.runtime.start.hook import torch_imported

            torch_imported(torch, self.cpus)
        except Exception as error:  # whatever it is, it is the launcher's failure and must not become the job's
            os.write(2, f"torchpar: torch is not set as planned: {error!r}\n".encode(errors="backslashreplace"))
