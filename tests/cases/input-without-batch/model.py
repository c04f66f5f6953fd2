"""One of the inputs, a mask, has no batch."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.o = nn.Linear(8, 3)

    def forward(self, x, attn_mask):
        return self.o(self.a(x, x, x, attn_mask=attn_mask, need_weights=False)[0])


def build():
    return Net()
