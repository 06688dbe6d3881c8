import itertools
import multiprocessing
import os

from torch import default_generator
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler, _utils

_NO_PREFETCH = 2 if os.environ.get("FAKE_TORCH") == "1.13" else None


class DataLoader:
    def __init__(  # noqa: PLR0913 - the arguments of the real one
        self, dataset, batch_size=1, shuffle=None, sampler=None, batch_sampler=None, num_workers=0, collate_fn=None,
        pin_memory=False, drop_last=False, timeout=0, worker_init_fn=None, multiprocessing_context=None,
        generator=None, *, prefetch_factor=_NO_PREFETCH, persistent_workers=False
    ):  # fmt: skip
        if num_workers == 0 and prefetch_factor != _NO_PREFETCH:
            raise ValueError("prefetch_factor option could only be specified in multiprocessing")
        if num_workers == 0 and multiprocessing_context:
            raise ValueError("multiprocessing_context can only be used with multi-process loading")
        if num_workers and prefetch_factor is None:
            prefetch_factor = 2
        self.dataset, self.batch_size, self.num_workers, self.pin_memory = dataset, batch_size, num_workers, pin_memory
        self.prefetch_factor, self.persistent_workers = prefetch_factor, persistent_workers
        self.worker_init_fn, self.generator, self.multiprocessing_context = worker_init_fn, generator, None
        if isinstance(multiprocessing_context, str):
            self.multiprocessing_context = multiprocessing.get_context(multiprocessing_context)
        self.collate_fn = collate_fn or list
        if isinstance(dataset, IterableDataset):
            sampler = itertools.repeat(None)
        elif sampler is None and batch_sampler is None:
            sampler = RandomSampler(dataset, generator) if shuffle else SequentialSampler(dataset)
        self.sampler = sampler
        self.batch_sampler = batch_sampler or (batch_size and BatchSampler(sampler, batch_size, drop_last))

    def _get_iterator(self):
        return _MultiProcessingDataLoaderIter(self) if self.num_workers else _SingleProcessDataLoaderIter(self)

    def __iter__(self):
        return self._get_iterator()


class _BaseDataLoaderIter:
    def __init__(self, loader):
        self._sampler_iter = iter(loader.batch_sampler or loader.sampler)
        self._base_seed = (loader.generator or default_generator).draw()
        self._num_workers, self._pin_memory = loader.num_workers, loader.pin_memory
        self._dataset_kind = int(isinstance(loader.dataset, IterableDataset))

    def __iter__(self):
        return self

    def _next_index(self):
        return next(self._sampler_iter)

    def __next__(self):
        return self._next_data()


class _SingleProcessDataLoaderIter(_BaseDataLoaderIter):
    def __init__(self, loader):
        super().__init__(loader)
        self._fetch = _fetcher(loader)

    def _next_data(self):
        return self._fetch(self._next_index())


class _MultiProcessingDataLoaderIter(_BaseDataLoaderIter):
    """One batch ahead in each of its workers, in turns."""

    def __init__(self, loader):
        super().__init__(loader)
        context = loader.multiprocessing_context or multiprocessing
        self._lines, self._workers, self._turn, self._owed = [], [], 0, 0
        for number in range(loader.num_workers):
            line = (context.SimpleQueue(), context.SimpleQueue())
            arguments = (_fetcher(loader), *line, loader.worker_init_fn, number)
            worker = context.Process(target=_utils.worker._worker_loop, args=arguments, daemon=True)
            worker.start()
            self._lines.append(line)
            self._workers.append(worker)
        for indices, _ in self._lines:
            self._ask(indices)

    def _ask(self, indices):
        try:
            indices.put(self._next_index())
            self._owed += 1
        except StopIteration:
            pass

    def _next_data(self):
        if not self._owed:
            self._shutdown_workers()
            raise StopIteration
        indices, batches = self._lines[self._turn % len(self._lines)]
        self._turn += 1
        self._owed -= 1
        done, data = batches.get()
        if not done:
            self._shutdown_workers()
            raise StopIteration if data is None else RuntimeError(data)
        self._ask(indices)
        return data

    def _shutdown_workers(self):
        for worker in self._workers:
            worker.kill()
            worker.join()


class _Fetcher:
    def __init__(self, loader):
        self.dataset, self.collate = loader.dataset, loader.collate_fn
        self.items = iter(self.dataset) if isinstance(self.dataset, IterableDataset) else None

    def __call__(self, index):
        if self.items is not None:
            data = list(itertools.islice(self.items, len(index)))
            if not data:
                raise StopIteration
            return self.collate(data)
        if isinstance(index, list):
            return self.collate([self.dataset[i] for i in index])
        return self.dataset[index]


def _fetcher(loader):
    made = []

    def fetch(index):
        if not made:
            made.append(_Fetcher(loader))
        return made[0](index)

    return fetch


if os.environ.get("FAKE_TORCH") == "other":
    del _BaseDataLoaderIter._next_index, DataLoader._get_iterator, _utils.worker._worker_loop
