"""One small model of each kind that users convert; `make.py` trains them."""

import torch
from torch import nn


class Cnn(nn.Module):
    """Batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.25), nn.Linear(512, 10))

    def forward(self, image):
        return self.head(self.features(image))


class Mlp(nn.Module):
    """Linear layers only."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def forward(self, pixels):
        return self.layers(pixels)


class Text(nn.Module):
    """A transformer encoder, for batches and texts of any size."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class Memory(nn.Module):
    """An LSTM, for batches and series of any size."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, steps):
        out, _ = self.lstm(steps)
        return self.head(out[:, -1])


class Branch(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if x.sum() > 0:
            return y + 1
        return y * 2


class Two(nn.Module):
    """Two inputs and a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left, right):
        return {"sum": self.linear(left + right), "difference": self.linear(left - right)}


class Nested(nn.Module):
    """Outputs inside of each other."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return y, (y + 1, (y * 2, {"last": y - 3}))


class Tied(nn.Module):
    """An embedding whose weights are those of the output layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


@torch.library.custom_op("shop::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@odd.register_fake
def _(x):
    return torch.empty_like(x)


class Custom(nn.Module):
    """An operator of one's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.ops.shop.odd(self.linear(x))


class Counting(nn.Module):
    """A forward pass that changes a buffer: refused."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


class Random(nn.Module):
    """A forward pass that draws random numbers: refused."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x) + torch.rand(())


class Quiet(Branch):
    """A branch that no usual input takes, after a harmless look at a size and at a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ready", torch.tensor(True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0 or not bool(self.ready):
            raise ValueError("nothing to do")
        y = self.linear(x)
        if y.abs().max() > 40:
            return y.clamp(-1, 1)
        return y


class Flagged(Quiet):
    """Looks at sizes and buffers, never at its data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 4 or not bool(self.ready):
            raise ValueError("nothing to do")
        return self.linear(x)


class Number(Branch):
    """A number taken out of the data, through a view that is written into."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(2)
        kept[0] = x[0, 0]
        return self.linear(x) + int(kept.sum().item() * 0)


class Sized(Branch):
    """Something else for a batch of more than three."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if x.shape[0] > 3:
            return y * 2
        return y


class Writing(Branch):
    """A forward pass that writes into its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return self.linear(x)


class Values(Branch):
    """Outputs that are no float32: whether, complex, half."""

    def forward(self, x: torch.Tensor):
        y = self.linear(x)
        return y > 0, torch.complex(y, -y), y.half()


def cnn():
    return Cnn()


def mlp():
    return Mlp()


def text():
    return Text()


def memory():
    return Memory()


def branch():
    return Branch()


def two():
    return Two()


def nested():
    return Nested()


def tied():
    return Tied()


def custom():
    return Custom()


def counting():
    return Counting()


def random():
    return Random()


def quiet():
    return Quiet()


def flagged():
    return Flagged()


def number():
    return Number()


def sized():
    return Sized()


def writing():
    return Writing()


def values():
    return Values()


def failing(path="licence.txt"):
    raise FileNotFoundError(f"there is no {path}")


def wrong():
    return 3
