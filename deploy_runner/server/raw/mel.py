"""Log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["spectrogram"]

_WINDOWS = {"hann": np.hanning, "hamming": np.hamming}
_WHISPER_RANGE = 8.0
_SLANEY_BREAK_HZ, _SLANEY_BREAK_MELS, _SLANEY_STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def spectrogram(wave: Any, spec: Mapping[str, Any]) -> Any:
    """Return the mel spectrogram [mels, frames] of a wave [samples], float32, computed in float64.

    The specification has `n_fft`, `hop_length` and `win_length` in samples, the window in the frame's
    middle; `window`, hann or hamming, periodic unless `symmetric`; `pad`, reflect or constant: frames are
    centred on their samples, None: they begin there; `power` of the magnitudes, 1 or 2; `filters` from
    `f_min` to `f_max` Hz, `n_mels` of them, on the `scale` of htk or slaney, by `norm` slaney of the same
    area; `rate` of the wave; what is added, `add`, and the least value, `floor`, before `log`: ln, log10,
    db (10 log10, down to `top_db` below the largest), whisper (log10, down to 8 below the largest, then
    (x + 4) / 4), or None; whether the last frame is dropped, `drop_last`; and `mean` and `std` of it all.

    Formulas: https://librosa.org/doc/latest/generated/librosa.filters.mel.html and
    https://github.com/openai/whisper/blob/main/whisper/audio.py.
    """
    n_fft, hop = spec["n_fft"], spec["hop_length"]
    wave = wave.astype(np.float64)
    if spec["pad"] is not None:
        half = n_fft // 2
        while spec["pad"] == "reflect" and len(wave) <= half:  # A mirror shows no more than there is.
            wave = np.pad(wave, (0, half + 1 - len(wave)))
        wave = np.pad(wave, half, mode=spec["pad"])
    if len(wave) < n_fft:
        wave = np.pad(wave, (0, n_fft - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, n_fft)[::hop]
    window = _window(spec["window"], spec["win_length"], n_fft, symmetric=bool(spec.get("symmetric")))
    power = np.abs(np.fft.rfft(frames * window)) ** spec["power"]
    if spec["drop_last"]:
        power = power[:-1]
    mels = _filters(
        n_fft // 2 + 1, spec["n_mels"], float(spec["f_min"]), float(spec["f_max"]), spec["rate"],
        spec["scale"], spec["norm"] is not None,
    ) @ power.T  # fmt: skip
    values = _log(mels, spec)
    if spec["mean"] is not None:
        values = values - spec["mean"]
    if spec["std"] is not None:
        values = values / spec["std"]
    return values.astype(np.float32)


def _log(mels: Any, spec: Mapping[str, Any]) -> Any:
    kind = spec["log"]
    if kind is None:
        return mels
    mels = np.maximum(mels + spec["add"], spec["floor"])
    if kind == "ln":
        return np.log(mels)
    values = np.log10(mels) * (10 if kind == "db" else 1)
    if kind == "db" and spec["top_db"] is not None:
        values = np.maximum(values, values.max() - spec["top_db"])
    if kind == "whisper":
        values = (np.maximum(values, values.max() - _WHISPER_RANGE) + 4) / 4
    return values


@lru_cache(maxsize=16)
def _window(name: str, length: int, n_fft: int, *, symmetric: bool) -> Any:
    made = _WINDOWS[name](length) if symmetric else _WINDOWS[name](length + 1)[:-1]
    before = (n_fft - length) // 2
    return np.pad(made, (before, n_fft - length - before))


@lru_cache(maxsize=16)
def _filters(
    bins: int, n_mels: int, f_min: float, f_max: float, rate: int, scale: str, same_area: bool
) -> Any:
    """Return triangles over the frequencies [n_mels, bins]."""
    to_mel, to_hz = _SCALES[scale]
    corners = to_hz(np.linspace(to_mel(np.array(f_min)), to_mel(np.array(f_max)), n_mels + 2))
    frequencies = np.linspace(0, rate / 2, bins)
    slopes = corners[:, None] - frequencies
    widths = np.diff(corners)[:, None]
    filters = np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]))
    if same_area:
        filters *= (2 / (corners[2:] - corners[:-2]))[:, None]
    return filters


def _htk(hertz: Any) -> Any:
    return 2595 * np.log10(1 + hertz / 700)


def _of_htk(mels: Any) -> Any:
    return 700 * (10 ** (mels / 2595) - 1)


def _slaney(hertz: Any) -> Any:
    above = _SLANEY_BREAK_MELS + np.log(np.maximum(hertz, 1e-9) / _SLANEY_BREAK_HZ) / _SLANEY_STEP
    return np.where(hertz >= _SLANEY_BREAK_HZ, above, 3 * hertz / 200)


def _of_slaney(mels: Any) -> Any:
    above = _SLANEY_BREAK_HZ * np.exp(_SLANEY_STEP * (mels - _SLANEY_BREAK_MELS))
    return np.where(mels >= _SLANEY_BREAK_MELS, above, 200 * mels / 3)


_SCALES = {"htk": (_htk, _of_htk), "slaney": (_slaney, _of_slaney)}
