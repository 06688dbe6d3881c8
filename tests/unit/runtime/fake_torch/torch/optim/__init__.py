from torch.optim.optimizer import Optimizer


class SGD(Optimizer):
    def step(self):
        return "stepped"


class Adam(SGD):
    def step(self):
        return super().step()


class AdamW(Adam):
    pass


del optimizer  # noqa: F821 - as torch does
