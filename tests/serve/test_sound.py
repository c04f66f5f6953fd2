"""Sounds become what transformers' extractors and torch.stft make of them; what isn't one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from deploy_runner.sdk import GateError, StageError
from deploy_runner.server.raw import rawio, sound
from deploy_runner.server.raw.problems import BadInput
from deploy_runner.stages.model import golden, sound_spec
from deploy_runner.stages.model.bundles import Port
from deploy_runner.stages.model.io_params import Mel, Sound
from tests.serve.raw_inputs import recorded, sound_file

NOWHERE = Path()
WAVE = Port("input_values", "float32", (2, 16000), {0: "batch", 1: "samples"}, 0)
MASK = Port("attention_mask", "int64", (2, 16000), {0: "batch", 1: "samples"}, 0)
FEATURES = Port("input_features", "float32", (2, 80, 3000), {0: "batch"}, 0)


def _arrays(given: Sound, ports: list[Port], *files: Any) -> dict[str, Any]:
    return sound.Sound(sound_spec.sound_spec(given, ports), NOWHERE).arrays(files)


def _waves(count: int) -> list[Any]:
    rng = np.random.default_rng(count)
    return [rng.normal(0.1, 0.2, 9000 + 4000 * i).astype(np.float32) for i in range(count)]


def _exact(wave: Any, rate: int = 16_000) -> bytes:
    return sound_file(wave, rate, "WAV", "FLOAT")


def test_waves_are_those_of_wav2vec2_to_the_bit() -> None:
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    waves = _waves(3)
    wanted = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="np")
    found = _arrays(sound_spec.of_hub(extractor.to_dict()), [WAVE, MASK], *map(_exact, waves))
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_spectrograms_are_whispers() -> None:
    extractor = WhisperFeatureExtractor()
    given = sound_spec.of_hub(extractor.to_dict())
    for wave in _waves(2):
        wanted = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_features"]
        found = _arrays(given, [FEATURES], _exact(wave))["input_features"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("pad", ["reflect", "constant", None])
def test_spectrograms_are_those_of_torch(scale: Any, pad: Any) -> None:
    wave = _waves(1)[0]
    mel = Mel(n_mels=40, n_fft=512, win_length=320, hop_length=100, f_max=7000, scale=scale, power=1, log="db",
              top_db=60, pad=pad)  # fmt: skip
    port = Port("x", "float32", (1, 1, 40, 87), {3: "frames"}, 0)
    found = _arrays(Sound(rate=16_000, mel=mel), [port], _exact(wave))["x"]
    frames = torch.stft(
        torch.from_numpy(wave).double(), 512, 100, 320, torch.hann_window(320, dtype=torch.float64),
        center=pad is not None, pad_mode=pad or "reflect", return_complex=True,
    )  # fmt: skip
    filters = torch.from_numpy(mel_filter_bank(257, 40, 0.0, 7000.0, 16_000, norm=None, mel_scale=scale))
    wanted = 10 * torch.log10((filters.T @ frames.abs()).clamp(min=1e-10))
    wanted = torch.maximum(wanted, wanted.max() - 60)
    np.testing.assert_allclose(found[0, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_forms_and_rates_give_one_channel_at_the_models_rate(form: str) -> None:
    (found,) = _arrays(Sound(rate=8_000, seconds=0.5), [WAVE_OF_HALF], recorded(0, 44_100, form))["x"]
    time = np.arange(2000, 3000) / 8_000
    share = np.abs(np.mean(found[2000:3000] * np.exp(-2j * np.pi * 200 * time)))
    assert share == pytest.approx(0.2, abs=0.01), "half of 0.4, the mean of the channels' 0.5 and 0.3"


WAVE_OF_HALF = Port("x", "float32", (1, 4000), {}, 0)
GOOD = recorded(0, 44_100, "WAV")
NOISE = _exact(_waves(1)[0])


@pytest.mark.parametrize(
    ("data", "said", "status"),
    [
        (b"", "none of WAV, FLAC, OGG, MP3, or is damaged", 422),
        (b"RIFF\x10\0\0\0WAVEfmt ", "cut off", 422),
        (GOOD[:5000], "the sound is cut off", 422),
        (recorded(2, 44_100, "FLAC")[:5000], "damaged", 422),
        (sound_file(_waves(1)[0], 16_000, "AIFF"), "none of WAV, FLAC, OGG, MP3", 422),
        (sound_file(np.zeros(500_000), 8_000, "FLAC"), "60 seconds long at most", 413),
        (sound_file(np.zeros(0), 8_000, "WAV"), "the sound is empty", 422),
        (_exact(np.full(100, np.nan, np.float32)), "no numbers", 422),
        (sound_file(np.zeros(100), 100, "WAV"), "100 samples a second and 1 channels: from 1000", 422),
        (sound_file(np.zeros((100, 9)), 8_000, "WAV"), "and 9 channels: .* up to 8", 422),
        ("text", "as bytes, in JSON as base64", 422),
    ],
)
def test_what_is_no_sound_is_refused_in_a_sentence(data: Any, said: str, status: int) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        _arrays(Sound(rate=16_000), [WAVE], data)
    assert refused.value.status == status


def test_another_rate_is_refused_where_nothing_resamples() -> None:
    with pytest.raises(BadInput, match="44100 samples a second, the model takes 16000"):
        _arrays(Sound(rate=16_000, resample=None), [WAVE], GOOD)
    with pytest.raises(BadInput, match=r"different lengths: \[9000, 13000\] samples"):
        _arrays(Sound(rate=16_000), [WAVE], *map(_exact, _waves(2)))


@pytest.mark.parametrize(
    ("given", "ports", "said"),
    [
        ({}, [WAVE], "how many samples a second"),
        ({"rate": 8_000, "seconds": 1}, [WAVE_OF_HALF], "takes 4000 along axis 1 of 'x', but 8000 are made"),
        ({"rate": 16_000, "mel": Mel(n_mels=80)}, [FEATURES], "takes 3000 along axis 2 .* any length"),
        ({"rate": 16_000, "mel": Mel(n_mels=64)}, [FEATURES], "0 .* look like spectrograms of 64 mels"),
        ({"rate": 16_000, "mel": Mel(win_length=500)}, [FEATURES], "win_length 500 of n_fft 400"),
        ({"rate": 16_000, "mel": Mel(f_max=9000)}, [FEATURES], "0 to 9000 Hz of 16000"),
        ({"rate": 16_000}, [FEATURES], r"0 .* look like waves \[N, T\]"),
    ],
)
def test_what_doesnt_fit_the_model_is_said(given: dict[str, Any], ports: list[Port], said: str) -> None:
    with pytest.raises(StageError, match=said):
        sound_spec.sound_spec(Sound(**given), ports)


@pytest.mark.parametrize("kind", ["ASTFeatureExtractor", "ClapFeatureExtractor"])
def test_extractors_that_cant_be_declared_are_refused(kind: str) -> None:
    with pytest.raises(StageError, match=f"how {kind} prepares sounds can't be declared"):
        sound_spec.of_hub({"feature_extractor_type": kind, "sampling_rate": 16_000})


def test_every_step_that_training_code_may_take_otherwise_changes_something() -> None:
    given = Sound(rate=16_000, seconds=1, mel=Mel(n_mels=40, log="ln"))
    spec = sound_spec.sound_spec(given, [Port("x", "float32", (1, 40, 81), {}, 0)])
    body = recorded(1, 44_100, "FLAC")
    usual = sound.Sound(spec, NOWHERE).arrays([body])["x"]
    for step, does, changed in sound.variants(spec):
        other = sound.Sound(changed, NOWHERE).arrays([body])["x"]
        same = other.shape == usual.shape and np.array_equal(other, usual)
        assert not same, f"{step}: {does}"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mel": {"scale": "slaney"}}, r"mel.scale: your code has Slaney's mel scale\)"),
        ({"mel": {"log": "log10"}}, r"mel.log: your code takes the logarithm to base 10\)"),
        ({"mel": {"add": 1e-6}}, r"mel.add: your code adds 1e-6 before the logarithm\)"),
        ({"first": True}, r"channels: your code takes the first channel only\)"),
        ({"scale": 32768}, r"scale: your code takes the values of 16 bits"),
        ({"as_is": True}, r"resample: your code takes the samples as they are, whatever their rate\)"),
    ],
)
def test_the_step_that_the_training_took_otherwise_is_named(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    given = Sound(rate=16_000, seconds=1, mel=Mel(n_mels=40, log="ln"))
    spec = sound_spec.sound_spec(given, [Port("x", "float32", (1, 40, 81), {}, 0)])
    theirs = {**spec, **changed, "mel": {**spec["mel"], **changed.get("mel", {})}}
    (tmp_path / "a.wav").write_bytes(recorded(2, 44_100, "WAV"))
    raw = rawio.RawIo(NOWHERE, {"sound": spec, "answer": {"kind": "number", "output": "y"}})

    def training(path: str) -> Any:
        return sound.Sound(theirs, NOWHERE).arrays([Path(path).read_bytes()])["x"]

    with pytest.raises(GateError, match=r"a.wav: the tensor 'x' differs .*\(" + said):
        golden.check(raw, [tmp_path / "a.wav"], training, dict, 1e-5)
