"""The second argument is left out, the third is given."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x, scale=None, shift=None):
        y = self.l(x)
        if scale is not None:
            y = y * scale
        if shift is not None:
            y = y + shift
        return y


def build():
    return Net()
