"""Sounds to samples of a wave or to a log-mel spectrogram, as transformers' feature extractors make them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .mel import spectrogram
from .problems import BadInput

__all__ = ["Sound", "variants"]

_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_RATES = (1_000, 192_000)
"""Per second: beyond them no recording is."""
_MOST_CHANNELS = 8
_BLOCK = 65_536
_UNKNOWN_SIZE = 0x7FFF_0000
"""From here on a WAV's size says that it was written into a pipe."""


class Sound:
    """WAV, FLAC, OGG or MP3 as a tensor.

    The specification has, in the order in which it is done: `max_seconds`; `rate` of the model per second,
    `resample`, soxr's quality (HQ, VHQ; None: another rate is refused); `samples`, the length that a sound
    is cut or filled with zeros to (None: as it is); `scale`, by which its values from -1 to 1 are
    multiplied; `normalize`, None or {"eps": e}: a mean of 0 and a variance of 1 over what isn't filled up;
    `mel`, None or the specification of a spectrogram; `layout`, a wave's [N, T] (T) or [N, 1, T] (1T), a
    spectrogram's MT, TM, 1MT or 1TM; `tensor`, the input's name; and `mask`, that of the input [N, T] that
    says which samples of a wave aren't filled up, or None. Channels are averaged.
    """

    field = "audio"

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        import soundfile
        import soxr

        self._spec = spec
        self._open, self._resampled = soundfile.SoundFile, soxr.resample

    def arrays(self, given: Sequence[bytes]) -> dict[str, Any]:
        """Return the sounds [len(given), …], and the mask. Raises BadInput."""
        spec = self._spec
        waves = [self._wave(data) for data in given]
        lengths = [len(wave) for wave in waves]
        longest = spec["samples"] or max(lengths)
        if spec["mask"] is None and spec["samples"] is None and len(set(lengths)) > 1:
            raise BadInput(f"the sounds of a request have different lengths: {sorted(set(lengths))} samples")
        filled = np.zeros((len(waves), longest), np.float32)
        for row, wave in zip(filled, waves, strict=True):
            row[: len(wave)] = wave
        array = filled if spec["mel"] is None else np.stack([spectrogram(row, spec["mel"]) for row in filled])
        if spec["layout"] in ("TM", "1TM"):
            array = array.swapaxes(1, 2)
        if spec["layout"].startswith("1"):
            array = array[:, None]
        found = {spec["tensor"]: np.ascontiguousarray(array, np.float32)}
        if spec["mask"] is not None:
            shown = np.arange(longest) < np.array(lengths)[:, None]
            found[spec["mask"]] = shown.astype(spec["mask_dtype"])
        return found

    def _wave(self, data: Any) -> Any:
        """Return a sound's samples at the model's rate, cut and normalized, float32."""
        spec = self._spec
        if not isinstance(data, bytes):
            raise BadInput("a sound is sent as bytes, in JSON as base64")
        wave, rate = self._decoded(data)
        if rate != spec["rate"] and not spec.get("as_is"):
            if spec["resample"] is None:
                raise BadInput(f"the sound has {rate} samples a second, the model takes {spec['rate']}")
            wave = self._resampled(wave, rate, spec["rate"], quality=spec["resample"])
        wave = wave[: spec["samples"]] * np.float32(spec["scale"])
        if not len(wave):
            raise BadInput("the sound is empty")
        if not np.isfinite(wave).all():
            raise BadInput("the sound has values that are no numbers")
        if spec["normalize"] is not None:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + spec["normalize"]["eps"])
        return wave

    def _decoded(self, data: bytes) -> tuple[Any, int]:
        """Return a sound's samples float32 of one channel, and its rate, read a block at a time."""
        if data[:4] == b"RIFF" and len(data) + 1 < 8 + int.from_bytes(data[4:8], "little") < _UNKNOWN_SIZE:
            raise BadInput("the sound is cut off")
        try:
            with self._open(io.BytesIO(data)) as file:
                _check(file)
                most = int(self._spec["max_seconds"] * file.samplerate)
                blocks, count = [np.zeros(0, np.float32)], 0
                while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                    count += len(block)
                    if count > most:
                        raise BadInput(f"a sound may be {self._spec['max_seconds']:g} seconds long at most",
                                       too_large=True)  # fmt: skip
                    blocks.append(block[:, 0] if self._spec.get("first") else block.mean(1))
                if count < file.frames < _UNKNOWN_SIZE and file.format != "MP3":
                    raise BadInput("the sound is cut off")
                return np.concatenate(blocks), file.samplerate
        except (BadInput, MemoryError):
            raise
        except Exception:  # Whatever a hostile file makes of it.
            raise BadInput(f"the sound is none of {', '.join(_NAMES)}, or is damaged") from None


_NAMES = [name for name in _FORMATS if name != "WAVEX"]


def _check(file: Any) -> None:
    if file.format not in _FORMATS:
        raise BadInput(f"the sound is none of {', '.join(_NAMES)}")
    if not _RATES[0] <= file.samplerate <= _RATES[1] or not 1 <= file.channels <= _MOST_CHANNELS:
        said = f"it has {file.samplerate} samples a second and {file.channels} channels"
        raise BadInput(f"{said}: from {_RATES[0]} to {_RATES[1]} and up to {_MOST_CHANNELS} are taken")


def variants(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a step, what code does that takes it otherwise, and the specification of that."""
    spec = dict(spec)
    yield "channels", "takes the first channel only", {**spec, "first": True}
    yield "resample", "takes the samples as they are, whatever their rate", {**spec, "as_is": True}
    for quality in ("LQ", "MQ", "HQ", "VHQ"):
        if quality != spec["resample"]:
            yield "resample", f"resamples with soxr's quality {quality}", {**spec, "resample": quality}
    yield "scale", "takes the values of 16 bits, from -32768 to 32767", {**spec, "scale": 32768}
    if spec["normalize"] is None:
        for eps in (1e-7, 0.0):
            does = "subtracts the mean and divides by the deviation"
            yield "normalize", does, {**spec, "normalize": {"eps": eps}}
    else:
        yield "normalize", "neither subtracts a mean nor divides by a deviation", {**spec, "normalize": None}
        if spec["samples"] is not None:
            yield "normalize", "doesn't cut or fill up", {**spec, "samples": None}
    if spec["mel"] is None:
        return
    mel = dict(spec["mel"])
    does_by_key: list[tuple[str, Any, str]] = [
        ("scale", "htk", "has HTK's mel scale"), ("scale", "slaney", "has Slaney's mel scale"),
        ("norm", None, "doesn't norm the filters by their area"),
        ("norm", "slaney", "norms the filters by their area"),
        ("power", 1, "takes the magnitude, not the power"), ("power", 2, "takes the power"),
        ("log", None, "takes no logarithm"), ("log", "ln", "takes the natural logarithm"),
        ("log", "log10", "takes the logarithm to base 10"), ("log", "db", "takes decibels"),
        ("log", "whisper", "takes the logarithm as Whisper does"),
        ("pad", None, "doesn't centre the frames"), ("pad", "constant", "fills up the ends with zeros"),
        ("pad", "reflect", "mirrors the ends"), ("drop_last", True, "drops the last frame"),
        ("drop_last", False, "keeps the last frame"), ("window", "hamming", "has a Hamming window"),
        ("symmetric", True, "has a symmetric window"), ("floor", 1e-10, "has a floor of 1e-10"),
        ("floor", 1e-5, "has a floor of 1e-5"), ("add", 1e-6, "adds 1e-6 before the logarithm"),
        ("add", 1e-9, "adds 1e-9 before the logarithm"), ("mean", None, "subtracts no mean"),
    ]  # fmt: skip
    for key, value, does in does_by_key:
        if mel.get(key) != value:
            yield f"mel.{key}", does, {**spec, "mel": {**mel, key: value}}
