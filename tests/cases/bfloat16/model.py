"""The weights and the answers are bfloat16."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.to(self.a.weight.dtype))))


def build():
    return Net().bfloat16()
