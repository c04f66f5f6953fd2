"""The checkpoint has the names of the older weight_norm."""

from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = weight_norm(nn.Conv1d(3, 4, 3))
        self.l = nn.Linear(4, 2)

    def forward(self, x):
        return self.l(self.c(x).mean(-1))


def build():
    return Net()
