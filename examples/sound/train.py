"""Train the example: `python train.py` writes the checkpoint and its spectrograms, in under a minute.

The sounds are recordings of a drum kit (sounds/README.md). Of each drum's strokes, from soft to hard, every
other one is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from model import KINDS, Drums
from torch import Tensor, nn

HERE = Path(__file__).parent
RATE, SAMPLES = 11025, 4410
N_FFT, HOP, MELS = 256, 128, 40


def filters() -> Tensor:
    """Return the triangles of the mel scale, (bins, mels), as torchaudio makes them."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, highest, MELS + 2) / 2595) - 1)
    slopes = points[None, :] - np.linspace(0, RATE / 2, N_FFT // 2 + 1)[:, None]
    down, up = -slopes[:, :-2] / np.diff(points)[:-1], slopes[:, 2:] / np.diff(points)[1:]
    return torch.from_numpy(np.maximum(0, np.minimum(down, up))).float()


def spectrogram(wave: Tensor) -> Tensor:
    """Return the log-mel spectrograms (…, 40, 35) of waves of 0.4 s."""
    window = torch.hann_window(N_FFT)
    power = torch.stft(wave, N_FFT, HOP, window=window, pad_mode="reflect", return_complex=True).abs() ** 2
    return torch.log((power.mT @ filters()).mT + 1e-6)


def wave_of(path: Path) -> Tensor:
    """Return a file's wave, filled up to 0.4 s."""
    wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[:SAMPLES]
    return nn.functional.pad(wave, (0, SAMPLES - len(wave)))


def prepare(path: Path) -> Tensor:
    """Return what the model takes for a file; the pipeline's io is compared with this."""
    return spectrogram(wave_of(path))[None]


def load(split: str) -> tuple[Tensor, Tensor]:
    """Return the waves and the labels of a split."""
    files = sorted((HERE / "sounds" / split).glob("*/*.flac"))
    labels = [KINDS.index(file.parent.name) for file in files]
    return torch.stack([wave_of(file) for file in files]), torch.tensor(labels)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    waves, labels = load("training")
    heldout, truth = load("heldout")
    model = Drums()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(120):
        model.train()
        louder = waves * torch.empty(len(waves), 1).uniform_(0.3, 3)
        shifted = torch.stack([torch.roll(w, int(torch.randint(0, 200, ()))) for w in louder])
        noisy = shifted + 1e-3 * torch.randn_like(shifted)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(spectrogram(noisy)), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        guessed = model(spectrogram(heldout)).argmax(1)
    print(f"accuracy on the held-out strokes: {(guessed == truth).float().mean():.4f}")
    with (HERE / "drums.pt").open("wb") as file:
        torch.save({"model_state_dict": model.state_dict()}, file)
    np.savez_compressed(HERE / "calibration.npz", mel=spectrogram(waves).numpy())


if __name__ == "__main__":
    main()
