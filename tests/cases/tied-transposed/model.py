"""Two parameters are views of one storage, one of them transposed."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n=6):
        super().__init__()
        self.enc = nn.Linear(n, n, bias=False)
        self.dec = nn.Linear(n, n, bias=False)
        self.dec.weight = nn.Parameter(self.enc.weight.detach().t())  # tied, transposed: one storage

    def forward(self, x):
        return self.dec(torch.relu(self.enc(x)))


def build():
    return Net()
