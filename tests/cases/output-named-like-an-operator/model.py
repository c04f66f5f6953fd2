"""The outputs have names that exporters give to values of their own."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.a(x))
        y = self.b(h)
        return {"linear": y, "relu": y + 1, "add": h * 2}


def build():
    return Net()
