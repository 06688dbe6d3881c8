import types

_info = None


def get_worker_info():
    return _info


def _worker_loop(fetch, index_queue, data_queue, init_fn, worker_id):
    global _info
    import torch

    torch.set_num_threads(1)
    _info = types.SimpleNamespace(id=worker_id)
    if init_fn is not None:
        init_fn(worker_id)
    while (index := index_queue.get()) is not None:
        try:
            data_queue.put((True, fetch(index)))
        except StopIteration:
            data_queue.put((False, None))
        except Exception as error:
            kind = type(error).__name__
            data_queue.put((False, f"Caught {kind} in DataLoader worker process {worker_id}.\n{kind}: {error}"))
