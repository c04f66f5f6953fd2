"""Models of sequences: text, series, controls."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PackedLstm(nn.Module):
    """Sentences of different lengths, packed as torch's tutorials do it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 12, padding_idx=0)
        self.lstm = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=True)
        out, _ = self.lstm(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=tokens.size(1))
        return self.head(out.sum(1) / lengths[:, None])


class MaskedGru(nn.Module):
    """The state at the last real step, found by the lengths."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, series, lengths):
        out, _ = self.gru(series)
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.size(2))
        return self.head(out.gather(1, last).squeeze(1))


class MaskedAttention(nn.Module):
    """A causal decoder that also honours a padding mask."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.embed, self.place = nn.Embedding(60, width), nn.Embedding(64, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids, mask):
        b, t = ids.shape
        x = self.embed(ids) + self.place(torch.arange(t))
        q, k, v = self.qkv(self.norm(x)).view(b, t, self.heads, -1).permute(2, 0, 1, 3).chunk(3, dim=-1)
        score = torch.einsum("hbqd,hbkd->hbqk", q, k) / math.sqrt(q.size(-1))
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        keep = causal[None] & mask[:, None, :].bool()
        score = score.masked_fill(~keep, torch.finfo(score.dtype).min)
        y = torch.einsum("hbqk,hbkd->bqhd", score.softmax(-1), v).flatten(2)
        return (x + self.out(y)) @ self.embed.weight.T


class EncoderLayers(nn.Module):
    """nn.TransformerEncoder with src_key_padding_mask, as its tutorial has it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens, mask):
        x = self.encoder(self.embed(tokens), src_key_padding_mask=mask == 0)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


class Tcn(nn.Module):
    """Causal dilated convolutions."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4 if i == 0 else 12, 12, 3, dilation=2**i) for i in range(4))
        self.head = nn.Conv1d(12, 2, 1)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            y = F.relu(conv(F.pad(x, (2 * 2**i, 0))))
            x = y if x.size(1) != y.size(1) else x + y
        return self.head(x)


class Kalman(nn.Module):
    """A filter that steps through its measurements in a Python loop over a fixed window."""

    def __init__(self, steps=6):
        super().__init__()
        self.steps = steps
        self.a = nn.Parameter(torch.eye(3) * 0.9 + 0.05)
        self.h = nn.Parameter(torch.randn(2, 3) * 0.3)
        self.log_q, self.log_r = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))

    def forward(self, z):
        b = z.size(0)
        m = z.new_zeros(b, 3, 1)
        p = torch.eye(3).expand(b, 3, 3)
        for t in range(self.steps):
            m = self.a @ m
            p = self.a @ p @ self.a.T + torch.diag(self.log_q.exp())
            s = self.h @ p @ self.h.T + torch.diag(self.log_r.exp())
            d = s[:, 0, 0] * s[:, 1, 1] - s[:, 0, 1] * s[:, 1, 0]
            inv = (
                torch.stack([s[:, 1, 1], -s[:, 0, 1], -s[:, 1, 0], s[:, 0, 0]], -1).view(b, 2, 2)
                / d[:, None, None]
            )
            gain = p @ self.h.T @ inv
            m = m + gain @ (z[:, t, :, None] - self.h @ m)
            p = p - gain @ self.h @ p
        return m.squeeze(-1), p


class Seq2Seq(nn.Module):
    """An LSTM encoder, and a decoder that feeds on its own answers for a fixed number of steps."""

    def __init__(self, steps=4):
        super().__init__()
        self.steps = steps
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.LSTM(8, 12, batch_first=True)
        self.cell = nn.LSTMCell(8, 12)
        self.head = nn.Linear(12, 20)

    def forward(self, source):
        _, (h, c) = self.encoder(self.embed(source))
        h, c = h[0], c[0]
        word = torch.zeros_like(source[:, 0])
        logits = []
        for _ in range(self.steps):
            h, c = self.cell(self.embed(word), (h, c))
            out = self.head(h)
            word = out.argmax(-1)
            logits.append(out)
        return torch.stack(logits, 1), word


class BagOfWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(80, 16, mode="mean")
        self.head = nn.Linear(16, 6)

    def forward(self, words):
        return self.head(self.bag(words))


class TiedLanguageModel(nn.Module):
    """The output layer is the embedding; rotary positions, computed for the length at hand."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(70, width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.head = nn.Linear(width, 70, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("freq", 1.0 / 10000 ** (torch.arange(0, width, 2) / width), persistent=False)

    def rotate(self, x):
        angle = torch.outer(torch.arange(x.size(1)).float(), self.freq)
        a, b = x[..., 0::2], x[..., 1::2]
        c, s = angle.cos(), angle.sin()
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.mix(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.head(x)


class Perceiver(nn.Module):
    """A few latents read a set of any length, with optional arguments that nobody gives."""

    def __init__(self, width=16):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, width))
        self.embed = nn.Linear(5, width)
        self.cross = nn.MultiheadAttention(width, 2, batch_first=True)
        self.own = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x, mask=None, temperature: float = 1.0):
        x = self.embed(x)
        z = self.latents.expand(x.size(0), -1, -1)
        z = z + self.cross(z, x, x, key_padding_mask=mask, need_weights=False)[0]
        z = z + self.own(z, z, z, need_weights=False)[0]
        return self.head(z.mean(1)) / temperature
