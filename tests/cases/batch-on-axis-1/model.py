"""The batch is axis 1 of both inputs and of both outputs, as recurrent networks have it."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 8, 2, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x, h0):
        y, h = self.rnn(x, h0)
        return self.out(y), h


def build():
    return Net()
