"""A mask of minus infinity lies among the constants."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.k = nn.Linear(8, 8)
        self.v = nn.Linear(8, 8)
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        s = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        m = torch.full((6, 6), float("-inf")).triu(1)
        return self.o(torch.softmax(s + m, -1) @ self.v(x))


def build():
    return Net()
