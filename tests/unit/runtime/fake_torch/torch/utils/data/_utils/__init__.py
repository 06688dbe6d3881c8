from torch.utils.data._utils import pin_memory, worker  # noqa: F401
