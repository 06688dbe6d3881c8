import random

from torch import default_generator
from torch.utils.data._utils.worker import get_worker_info  # noqa: F401


class Dataset:
    pass


class IterableDataset(Dataset):
    pass


class SequentialSampler:
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(range(len(self.data)))


class RandomSampler(SequentialSampler):
    def __init__(self, data, generator=None):
        super().__init__(data)
        self.generator = generator

    def __iter__(self):
        order = list(range(len(self.data)))
        random.Random((self.generator or default_generator).draw()).shuffle(order)
        return iter(order)


class BatchSampler:
    def __init__(self, sampler, batch_size, drop_last):
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self):
        batch = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch


from torch.utils.data.dataloader import DataLoader  # noqa: E402, F401
