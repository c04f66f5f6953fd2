"""A number is computed from the length, which a trace keeps."""

import math

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x):
        return self.l(x).sum(1) / math.sqrt(x.shape[1])


def build():
    return Net()
