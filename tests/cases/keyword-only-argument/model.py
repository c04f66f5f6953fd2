"""An argument can be given by its name only."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x, *, shift):
        return self.l(x) + shift


def build():
    return Net()
