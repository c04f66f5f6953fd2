"""Complete what a pipeline says of sounds with what the model and its feature extractor say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy_runner.sdk import StageError

from . import filling
from .bundles import Port
from .io_params import Mel, Sound

__all__ = ["of_hub", "sound_spec"]

_DECLARE = "say in sound what the training did, or use preprocess"
_WAV2VEC_EPS = 1e-7
"""Added to the variance: https://github.com/huggingface/transformers, feature_extraction_wav2vec2.py."""


def of_hub(config: Mapping[str, Any]) -> Sound:
    """Return what the preprocessor_config.json of Whisper or Wav2Vec2 says. Raises StageError."""
    kind = str(config.get("feature_extractor_type") or "a processor")
    if config.get("padding_side", "right") != "right" or config.get("padding_value", 0):
        raise StageError(f"{kind} fills up sounds on the left, or not with zeros", fix=_DECLARE)
    if kind == "Wav2Vec2FeatureExtractor":
        return Sound(rate=config["sampling_rate"], normalize=config.get("do_normalize", True))
    if kind != "WhisperFeatureExtractor":
        raise StageError(f"how {kind} prepares sounds can't be declared", fix=_DECLARE)
    if config.get("dither"):
        raise StageError(f"{kind} adds noise (dither), which no two runs do alike", fix=_DECLARE)
    mel = Mel(
        n_mels=config["feature_size"], n_fft=config["n_fft"], hop_length=config["hop_length"], f_max=8000,
        scale="slaney", norm="slaney", log="whisper", drop_last=True,
    )  # fmt: skip
    return Sound(rate=config["sampling_rate"], seconds=config["chunk_length"], mel=mel)


def sound_spec(given: Sound, ports: Sequence[Port]) -> dict[str, Any]:
    """Return the specification of sounds for the model's input of them, and of its mask."""
    if given.rate is None:
        said = "nothing says how many samples a second the model takes"
        raise StageError(said, fix="set sound: {rate: 16000}")
    mel = None if given.mel is None else _mel(given.mel, given.rate)
    port, layout = _port(ports, mel)
    samples = None if given.seconds is None else round(given.seconds * given.rate)
    time = len(port.shape) - (2 if layout.endswith("TM") else 1)
    fixed = None if time in port.dynamic else port.shape[time]
    if mel is None:
        samples = samples or fixed
    made = _length(samples, mel) if samples else None
    if fixed is not None and made != fixed:
        said = f"{made} are made of {samples} samples" if made else "sounds have any length"
        raise StageError(f"the model takes {fixed} along axis {time} of {port.name!r}, but {said}",
                         fix="set sound: {seconds: …}, as the training cut or filled them")  # fmt: skip
    masks = [p for p in ports if filling.called(p.name, p.dtype, len(p.shape)) in ("mask", "padding")]
    mask = masks[0] if masks and mel is None and len(masks[0].shape) == 2 else None
    return {
        "tensor": port.name, "layout": layout, "mask": mask and mask.name, "rate": given.rate,
        "mask_dtype": mask and mask.dtype, "resample": given.resample and given.resample.upper(),
        "samples": samples, "scale": given.scale,
        "normalize": {"eps": _WAV2VEC_EPS} if given.normalize else None,
        "mel": mel, "max_seconds": given.max_seconds,
    }  # fmt: skip


def _mel(given: Mel, rate: int) -> dict[str, Any]:
    window = given.win_length or given.n_fft
    highest = rate / 2 if given.f_max is None else given.f_max
    if window > given.n_fft or not given.f_min < highest <= rate / 2:
        said = f"win_length {window} of n_fft {given.n_fft}, {given.f_min:g} to {highest:g} Hz"
        raise StageError(f"sound.mel: {said} of {rate} samples a second is impossible")
    return {**given.model_dump(), "win_length": window, "hop_length": given.hop_length or window // 2,
            "f_max": highest, "rate": rate}  # fmt: skip


def _length(samples: int, mel: Mapping[str, Any] | None) -> int:
    """Return how many samples or frames the model gets."""
    if mel is None:
        return samples
    longer = samples + (mel["n_fft"] // 2 * 2 if mel["pad"] else 0)
    frames: int = 1 + (max(longer, mel["n_fft"]) - mel["n_fft"]) // mel["hop_length"]
    return frames - bool(mel["drop_last"])


def _port(ports: Sequence[Port], mel: Mapping[str, Any] | None) -> tuple[Port, str]:
    """Return the model's input of sounds, and its layout."""
    found = []
    for port in ports:
        if "float" not in port.dtype or filling.called(port.name, port.dtype, len(port.shape)) == "mask":
            continue
        if mel is None:
            if len(port.shape) == 2 or (len(port.shape) == 3 and port.shape[1] == 1):
                found.append((port, "T" if len(port.shape) == 2 else "1T"))
            continue
        one = len(port.shape) == 4 and port.shape[1] == 1
        last = port.shape[-2:] if one or len(port.shape) == 3 else []
        if mel["n_mels"] in last:
            found.append((port, ("1" if one else "") + ("MT" if last[0] == mel["n_mels"] else "TM")))
    if len(found) != 1:
        what = "waves [N, T] or [N, 1, T]" if mel is None else f"spectrograms of {mel['n_mels']} mels"
        listed = ", ".join(f"{p.name} {p.dtype} {list(p.shape)}" for p in ports)
        raise StageError(f"{len(found)} of the model's inputs look like {what}: {listed}")
    return found[0]
