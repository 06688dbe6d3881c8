"""All models of a service: which versions there are, which are served, and exchanging them under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.metadata import LOADING, READY, UNAVAILABLE, UNLOADING, ModelIndex
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.served import Served
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.files import ModelFile, find_models


class Repository:
    """Belongs to the event loop's thread, but for `look`."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._served: dict[str, dict[str, Served]] = {}
        self._latest: dict[str, Served] = {}
        # (name, version) → what is known of it, served or not.
        self._files: dict[tuple[str, str], ModelFile] = {}
        self._states: dict[tuple[str, str], tuple[str, str]] = {}
        self._statistics: dict[tuple[str, str], Statistics] = {}

    def look(self) -> list[ModelFile]:
        """Finds the versions that are on disk now. Raises ModelError."""
        path = self._options.handler or self._options.model
        if path is None:
            raise ModelError("neither Model= nor Handler= says what to serve")
        try:
            files, problems = find_models(self._options.name, path)
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        for problem in problems:
            say(problem, Priority.WARNING)
        if not files:
            raise ModelError(f"{path}: no model in it; expected is a file, or NAME/VERSION/model.pt below it")
        return files

    def found(self, files: list[ModelFile]) -> None:
        """Takes over what `look` saw; what is served stays, whether its file is still there or not."""
        self._files = {(file.name, file.version): file for file in files}
        for key in list(self._states):
            if key not in self._files and self._states[key][0] == UNAVAILABLE:
                del self._states[key]
        for key in self._files:
            self._states.setdefault(key, (UNAVAILABLE, "not loaded"))

    def files(self, name: str | None = None) -> list[ModelFile]:
        """Returns the versions on disk, of one model or all, as last seen."""
        return [file for file in self._files.values() if name in (None, file.name)]

    def get(self, name: str, version: str = "") -> Served:
        """Returns the served version that answers requests for a model. Raises ServeError 404 or 503."""
        if not version:
            served = self._latest.get(name)
        else:
            served = self._served.get(name, {}).get(version)
        if served is None:
            raise self._absent(name, version)
        return served

    def versions(self, name: str) -> tuple[str, ...]:
        """Returns the numbers of the served versions of a model, oldest first."""
        return tuple(sorted(self._served.get(name, {}), key=int))

    def all(self, name: str | None = None) -> Iterator[Served]:
        """Yields all served versions, by name and version."""
        for model in sorted(self._served):
            if name in (None, model):
                for version in self.versions(model):
                    yield self._served[model][version]

    def statistics(self, file: ModelFile) -> Statistics:
        """Returns a version's counters, which go on over a reload."""
        return self._statistics.setdefault((file.name, file.version), Statistics())

    def mark(self, file: ModelFile, state: str, reason: str = "") -> None:
        """Tells the index what happens to a version; one that goes on being served stays READY."""
        served = file.version in self._served.get(file.name, {})
        self._states[file.name, file.version] = (READY if served and state != UNLOADING else state, reason)

    def put(self, served: Served) -> Served | None:
        """Serves this from now on; returns the version that it replaces, or None."""
        old = self._served.setdefault(served.name, {}).pop(served.version, None)
        self._served[served.name][served.version] = served
        self._latest[served.name] = self._served[served.name][self.versions(served.name)[-1]]
        self._states[served.name, served.version] = (READY, served.untried)
        return old

    def take(self, served: Served, retired: Callable[[Served], None]) -> None:
        """Serves this no longer; `retired` is told."""
        versions = self._served.get(served.name, {})
        if versions.get(served.version) is served:
            del versions[served.version]
            if versions:
                self._latest[served.name] = versions[self.versions(served.name)[-1]]
            else:
                del self._served[served.name]
                del self._latest[served.name]
        self._states[served.name, served.version] = (UNLOADING, "")
        retired(served)

    def gone(self, served: Served) -> None:
        """Takes note that a version that was taken out has answered all it had."""
        key = (served.name, served.version)
        if self._states.get(key, ("", ""))[0] == UNLOADING:
            self._states[key] = (UNAVAILABLE, "unloaded")

    def index(self) -> list[ModelIndex]:
        """Lists every version, served or not."""
        return [
            ModelIndex(name, version, *self._states[name, version])
            for name, version in sorted(self._states, key=lambda key: (key[0], int(key[1])))
        ]

    def _absent(self, name: str, version: str) -> ServeError:
        states = [state for (n, v), state in self._states.items() if n == name and version in ("", v)]
        if not states:
            if any(n == name for n, _ in self._states):
                return ServeError(404, f"model '{name}' has no version {version}")
            return ServeError(404, f"there is no model '{name}'")
        kind, reason = states[-1]
        what = {LOADING: "is being loaded", UNLOADING: "is being unloaded"}.get(kind, f"is not served: {reason}")
        return ServeError(503, f"model '{name}' {what}", 1.0 if kind == LOADING else None)
