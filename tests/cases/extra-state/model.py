"""A part of the state is no tensor."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, s):
        self.scale = s["scale"]

    def forward(self, x):
        return self.l(x) * self.scale


def build():
    return Net()
