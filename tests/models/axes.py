"""Models whose samples are not on axis 0 of every input, as their authors wrote them."""

import torch
from torch import nn


class Speech(nn.Module):
    """An LSTM with time first: frames [time, batch, 6] and a state [2, batch, 8] to [time, batch, 5]."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, 2), nn.Linear(8, 5)

    def forward(self, frames, state):
        y, (hidden, _) = self.lstm(frames, (state, state))
        return self.head(y), hidden


class Sampler(nn.Module):
    """Probabilities at a temperature, a single number."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)

    def forward(self, x, temperature):
        return (self.body(x) / temperature).softmax(-1)


class Segmenter(nn.Module):
    """Down by 32 and up again: sizes that are no multiples of 32 do not fit the sum at the end."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Conv2d(4, 8, 4, 4), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 2, 32, 32)
        self.skip = nn.Conv2d(3, 2, 1)

    def forward(self, picture):
        return self.up(self.down(picture)) + self.skip(picture)


class Matcher(nn.Module):
    """Each query [batch, 4] against a gallery [items, 4] that all of them share."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, query, gallery):
        return self.query(query) @ self.key(gallery).T


class Reader(nn.Module):
    """A transformer's layer, sequence first: tokens [length, batch] and a mask [length, length] for all."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.attend, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        x = self.embed(tokens)
        x = x + self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.head(x).mean(0)


class Pooled(nn.Module):
    """One sequence [time, 4], without a batch, to one score: samples are not what `time` counts."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.gru(x)[0]).mean(0))


class Wave(nn.Module):
    """A filter of a signal [time, 4]: of five values at once, so that none shorter is taken."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Conv1d(4, 3, 5)

    def forward(self, signal):
        return self.filter(signal.T[None])[0].T


class Mirrored(nn.Module):
    """The same, as long as the signal, which is mirrored at its ends: of three values or more."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Conv1d(4, 3, 5, padding=2, padding_mode="reflect")

    def forward(self, signal):
        return self.filter(signal.T[None])[0].T


class Graph(nn.Module):
    """Messages along edges [2, edges], which number the nodes [nodes, 4]: fewer nodes are out of reach."""

    def __init__(self):
        super().__init__()
        self.own, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, nodes, edges):
        own = self.own(nodes)
        received = torch.zeros_like(own).index_add(0, edges[1], own[edges[0]])
        return self.head(torch.relu(own + received))


class Last(nn.Module):
    """Samples on the last axis: [steps, 4, batch]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)

    def forward(self, x):
        return self.body(x.permute(2, 0, 1)).permute(1, 2, 0)


class Camera(nn.Module):
    """Pictures as a camera gives them, uint8 [batch, height, width, 3], two strided layers deep."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]).view(3, 1, 1), persistent=False)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    @torch.inference_mode()
    def forward(self, picture):
        return self.head(self.body((picture.permute(0, 3, 1, 2).float() - self.mean) / 58))


def camera():
    return Camera()


def speech():
    return Speech()


def sampler():
    return Sampler()


def segmenter():
    return Segmenter()


def matcher():
    return Matcher()


def reader():
    return Reader()


def pooled():
    return Pooled()


def wave():
    return Wave()


def mirrored():
    return Mirrored()


def graph():
    return Graph()


def last():
    return Last()
