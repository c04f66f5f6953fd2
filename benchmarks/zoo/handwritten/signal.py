"""Models of sound and waves."""

import torch
import torch.nn.functional as F
from torch import nn


class StftNet(nn.Module):
    """The power of short-time spectra, on 16 bands, to words."""

    def __init__(self, size=64, hop=32):
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size))
        self.register_buffer("bands", torch.rand(size // 2 + 1, 16))
        self.net = nn.Conv1d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, sound):
        spectrum = torch.stft(
            sound, self.size, self.hop, window=self.window, center=True, return_complex=True
        )
        power = spectrum.real**2 + spectrum.imag**2
        bands = torch.log1p(power.transpose(1, 2) @ self.bands).transpose(1, 2)
        return self.head(self.net(bands).relu().mean(-1))


class FourierMixer(nn.Module):
    """FNet: the real part of a two-dimensional transform mixes the tokens."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.norm = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + torch.fft.fft2(x, dim=(-2, -1)).real)
        return self.ff(x).mean(1)


class SpectralConv(nn.Module):
    """A Fourier neural operator: complex weights on the lowest frequencies."""

    def __init__(self, modes=5, width=6):
        super().__init__()
        self.modes = modes
        self.lift, self.drop = nn.Linear(1, width), nn.Linear(width, 1)
        self.weight = nn.Parameter(torch.randn(width, width, modes, 2) * 0.2)
        self.skip = nn.Conv1d(width, width, 1)

    def forward(self, u):
        x = self.lift(u.unsqueeze(-1)).transpose(1, 2)
        f = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", f[..., : self.modes], torch.view_as_complex(self.weight))
        f = F.pad(low, (0, f.size(-1) - self.modes))
        y = torch.fft.irfft(f, n=x.size(-1)) + self.skip(x)
        return self.drop(F.gelu(y).transpose(1, 2)).squeeze(-1)


class ComplexNet(nn.Module):
    """Complex weights by hand, magnitudes and angles out."""

    def __init__(self):
        super().__init__()
        self.re, self.im = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, real, imaginary):
        z = torch.complex(self.re(real) - self.im(imaginary), self.re(imaginary) + self.im(real))
        z = z * z.conj().roll(1, -1)
        return z.abs(), z.angle()


class WaveRnn(nn.Module):
    """A gated stack over raw sound, and an upsampler of transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(1, 8, 16, 8, padding=4)
        self.gate = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.up = nn.ConvTranspose1d(8, 1, 16, 8, padding=4)

    def forward(self, sound):
        x = self.down(sound.unsqueeze(1))
        for layer in self.gate:
            a, b = layer(x).chunk(2, 1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return self.up(x).squeeze(1)


class AttentivePooling(nn.Module):
    """Mean and deviation over time by attention, as speaker models do it; any length of frames."""

    def __init__(self):
        super().__init__()
        self.frames = nn.Sequential(nn.Conv1d(10, 16, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(16))
        self.attend = nn.Conv1d(16, 16, 1)
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        h = self.frames(x)
        w = self.attend(h.tanh()).softmax(-1)
        mean = (h * w).sum(-1)
        std = ((h**2 * w).sum(-1) - mean**2).clamp(min=1e-6).sqrt()
        return F.normalize(self.head(torch.cat([mean, std], 1)), dim=-1)
