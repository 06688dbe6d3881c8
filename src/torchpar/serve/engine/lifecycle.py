"""Loads, reloads and unloads models while others are served, and compares them with other processes' own.

    on disk ──load──> loading ──> served ──unload, or a newer one──> retiring ──last answer──> closed
                         └──fails──> unavailable; what was served goes on
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.loading import load_served, save_curve
from torchpar.serve.engine.metadata import LOADING, UNAVAILABLE
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.repository import Repository
from torchpar.serve.engine.served import Served
from torchpar.serve.errors import ModelError, OtherFilesError, ServeError
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.identity import Files, Serves, differs, own_files, own_key, shortened
from torchpar.serve.models.weights import LEAST
from torchpar.serve.trim import trim

# Finds weights that another process has put into shared memory, given their name, or else puts those of a descriptor
# there, which it closes; returns the descriptor of what is shared, for the caller to close.
Exchange = Callable[[str, Optional[int]], Awaitable[Optional[int]]]

# MaxQueue=auto: what one second can compute, within these bounds, in requests.
QUEUE_SECONDS, LEAST_QUEUE, LARGEST_QUEUE = 1.0, 64, 8192


class Lifecycle:
    """The life of one engine's models. All methods belong to the event loop's thread; files are loaded on another."""

    def __init__(self, options: EngineOptions, repository: Repository) -> None:
        self.options = options
        self._repository = repository
        self._loop: asyncio.AbstractEventLoop
        self._loader: ThreadPoolExecutor
        self._loading: asyncio.Lock | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._retiring: set[Served] = set()
        self._exchange: Exchange | None = None

    async def start(self, like: Serves | None, unloaded: Collection[str]) -> None:
        """Loads and tries what is to be served: see Engine.start. Raises ModelError and OtherFilesError."""
        self._loop = asyncio.get_running_loop()
        self._loading = asyncio.Lock()  # here, for Python 3.9 binds it to the loop that is there
        # One for loading, which must not wait for the default executor's other users.
        self._loader = ThreadPoolExecutor(1, "load")
        try:
            files = await self._offload(self._repository.look)
            self._repository.found(files)
            files = [file for file in files if file.name not in unloaded]
            if like is not None:
                files = _only(files, like)
            problems = [str(problem) for problem in [await self._load(file) for file in files] if problem]
            if files and not any(self._repository.all()):
                raise ModelError("\n".join(problems))
            self._compare(like or {})
        except ModelError:
            self._loader.shutdown(wait=False)
            raise

    def all(self) -> list[Served]:
        """Returns the served versions, and the retired ones that still answer the requests they have accepted."""
        return [*self._repository.all(), *self._retiring]

    async def stop(self) -> None:
        """Closes them; what was learned of those that are served is kept."""
        if self._loading and self._loading.locked():
            # What is being loaded may take minutes, and what was learned is not worth them.
            for served in self._repository.all():
                await self._loop.run_in_executor(None, served.runner.close)
        else:
            for served in self._repository.all():
                await self._offload(self._put_away, served)
            if self._closing:
                await asyncio.wait(self._closing)
        self._loader.shutdown(wait=False)

    def serves(self) -> Serves:
        """Returns the served versions with the files that they were made of, for other processes to compare."""
        return {f"{s.name}/{s.version}": shortened(s.files) for s in self._repository.all()}

    def unbatched(self) -> dict[str, Served]:
        """Returns the served versions whose batching was ended by a difference, keyed by name, version and files."""
        return {_key(served): served for served in self._repository.all() if served.ended}

    def end_batching(self, keys: Collection[str]) -> None:
        """Serves unbatched from now on the versions in which another process found a difference.

        keys: see `unbatched`. A key of other files than those served here is ignored.
        """
        for served in self._repository.all() if keys else ():
            if served.batched and _key(served) in keys:
                served.say("served unbatched from now on, as in another process an answer differed")
                served.end_batching()

    def _compare(self, like: Serves) -> None:
        own = {f"{served.name}/{served.version}": served.files for served in self._repository.all()}
        for key, theirs in like.items():
            if key not in own:
                raise ModelError(f"{key}, which other processes serve, cannot be loaded")
            if differs(shortened(own[key]), theirs):
                raise OtherFilesError(_other(own[key], theirs))

    async def load(self, model: str) -> None:
        """Loads a model, or loads it again: the new one answers from some moment on, and no request is lost.

        Versions that are not on disk any more are unloaded. Raises ServeError: 404 when the repository has none of this
        name, 400 with the reason when a version cannot be loaded; the one that was served then goes on.
        """
        assert self._loading
        async with self._loading:
            await self._look()
            _refuse(await self._load_all(model))

    async def unload(self, model: str) -> None:
        """Stops serving a model; what was accepted is answered. Raises ServeError 404."""
        assert self._loading
        async with self._loading:
            served = list(self._repository.all(model))
            if not served:
                self._repository.get(model)  # says which
            for version in served:
                self._repository.take(version, self._retire)

    async def reload(self, model: str | None = None) -> None:
        """Loads one model, or all there are on disk, and unloads those that are not there any more.

        Raises ServeError with all reasons when some cannot be loaded; the served versions of those go on.
        """
        if model is not None:
            return await self.load(model)
        assert self._loading
        async with self._loading:
            await self._look()
            names = {file.name for file in self._repository.files()}
            names.update(served.name for served in self._repository.all())
            _refuse([problem for name in sorted(names) for problem in await self._load_all(name)])

    def _put_away(self, served: Served) -> None:
        for file in self._repository.files(served.name):
            if file.version == served.version:
                save_curve(served, file, self.options)
        served.runner.close()

    async def _look(self) -> None:
        """See what is on disk now. Raises ServeError."""
        try:
            self._repository.found(await self._offload(self._repository.look))
        except ModelError as error:
            raise ServeError(400, str(error)) from None

    async def _load_all(self, name: str) -> list[str]:
        """Loads every version of a model that is on disk, and unloads the others. Raises ServeError 404."""
        files = self._repository.files(name)
        if not files and not any(self._repository.all(name)):
            raise ServeError(404, f"there is no model '{name}'")
        problems = [str(problem) for problem in [await self._load(file) for file in files] if problem]
        there = {file.version for file in files}
        for served in list(self._repository.all(name)):
            if served.version not in there:
                self._repository.take(served, self._retire)
        return problems

    async def _load(self, file: ModelFile) -> ModelError | None:
        """Loads a version and lets it take the place of what was served."""
        self._repository.mark(file, LOADING)
        statistics = self._repository.statistics(file)
        try:
            served = await self._offload(load_served, file, self.options, statistics)
        except Exception as problem:
            # A file may be wrong in ways that nobody thought of: the others are served, and who asked is answered.
            if isinstance(problem, ModelError):
                error = problem
            else:
                error = ModelError(f"{file.path}: {type(problem).__name__}: {problem}")
            say(str(error), Priority.ERROR, error=None if error is problem else problem)
            self._repository.mark(file, UNAVAILABLE, str(error))
            return error
        served.limit = self._queue_limit(served)
        await self._share(served)
        old = self._repository.put(served)
        await self._offload(save_curve, served, file, self.options)
        if old:
            self._retire(old)
        return None

    async def share_weights(self, exchange: Exchange) -> None:
        """Shares the weights of all models with other processes, from now on: nothing is computed meanwhile."""
        self._exchange = exchange
        for served in self._repository.all():
            await self._share(served)

    async def _share(self, served: Served) -> None:
        if self._exchange is None:
            return
        weights = served.runner.weights()
        if weights is None or weights.size < LEAST:
            _say_unshared(served)
            return
        name = f"{served.name}/{served.version} {weights.size} {await self._offload(weights.checksum):x}"
        try:
            fd = await self._exchange(name, None)
            if fd is None:
                fd = await self._exchange(name, await self._offload(weights.copy))
            if fd is None:
                return
            try:
                await self._offload(served.runner.adopt, weights, fd)
            finally:
                os.close(fd)
        except OSError as error:
            served.say(f"its weights are not shared with other processes: {error.strerror}")
            return
        served.weights = name
        await self._offload(trim)

    def limit_queues(self) -> None:
        """Limits the queues anew: the options have another number of workers."""
        for served in self._repository.all():
            served.limit = self._queue_limit(served)

    def _queue_limit(self, served: Served) -> int:
        if self.options.max_queue:
            return self.options.max_queue
        cap = served.cap()
        rate = cap / served.curve.seconds(cap) * self.options.slots()
        return int(min(max(rate * QUEUE_SECONDS, LEAST_QUEUE), LARGEST_QUEUE))

    def _retire(self, served: Served) -> None:
        """Sends no new request to a version; it is closed when it has answered those it has."""
        served.retired = True
        self._retiring.add(served)
        if not served.open:
            self.close(served)

    def close(self, served: Served) -> None:
        """Closes what is retired and has answered all."""
        if served in self._retiring:
            self._retiring.discard(served)
            self._repository.gone(served)
            closing = asyncio.ensure_future(self._offload(served.runner.close))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _offload(self, function: Any, *arguments: Any) -> Any:
        """Runs a function that takes its time in a thread."""
        return await self._loop.run_in_executor(self._loader, function, *arguments)


def _only(files: Sequence[ModelFile], like: Serves) -> list[ModelFile]:
    """Returns the files of the versions that other processes serve.

    Raises OtherFilesError, before anything is loaded, where one of them differs here.
    """
    found = {f"{file.name}/{file.version}": file for file in files}
    for key, theirs in like.items():
        if key not in found:
            raise OtherFilesError(f"{key}, which is not there any more")
        own = own_files(found[key].path)
        if differs(shortened(own), theirs):
            raise OtherFilesError(_other(own, theirs))
    return [found[key] for key in like]


def _key(served: Served) -> str:
    return own_key(served.name, served.version, served.path, served.files)


def _other(own: Files, theirs: Mapping[str, str]) -> str:
    """Returns the path of the first file that differs."""
    return next(path for path, look in own.items() if differs(shortened({path: look}), theirs))


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ServeError(400, "; ".join(problems))


def unshared_bytes(served: Served) -> int:
    """Returns the size of a model of which each process has its own copy; 0 where they share it, or it is small."""
    weights = served.runner.weights()
    if weights is not None and weights.size >= LEAST:
        return 0
    try:
        size = os.path.getsize(served.path)
    except OSError:  # it is loaded all the same
        return 0
    return size if size >= LEAST else 0


def _say_unshared(served: Served) -> None:
    """Tells the journal that each process has the weights for itself, where its file is large enough to have some."""
    if size := unshared_bytes(served):
        say(
            f"model {served.name} version {served.version}: each process has its own weights ({size >> 20} MiB):"
            " only those of TorchScript that is not frozen are shared; Processes=1 keeps them once"
        )
