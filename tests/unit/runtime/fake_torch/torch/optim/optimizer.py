import os

_hooks = []


def register_optimizer_step_post_hook(hook):
    _hooks.append(hook)


class Optimizer:
    def __init__(self, params, lr=0.1):
        self.params = params
        if _NEW and not hasattr(type(self).step, "hooked"):
            type(self).step = _hooked(type(self).step)


def _hooked(step):
    def wrapper(self, *arguments):
        result = step(self, *arguments)
        for hook in _hooks:
            hook(self, arguments, {})
        return result

    wrapper.hooked = True
    return wrapper


_NEW = os.environ.get("FAKE_TORCH") != "1.13"
if not _NEW:
    del register_optimizer_step_post_hook
