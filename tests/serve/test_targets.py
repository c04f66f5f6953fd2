"""From a raw file to a label: the same answer from serve, the container's app and SageMaker's toolkit, and the training's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve.raw_inputs import encoded, recorded, sound_file, tokenizer
from tests.serve.targets import (
    IO,
    MODEL,
    ONNX,
    PACKAGE,
    Files,
    check_targets,
    code_of,
    fetched,
    prepared,
    project,
    trained,
)

DIGITS = """
    import numpy as np, torch
    from PIL import Image
    from torch import nn

    def build():
        return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))

    def prepare(path):
        return torch.from_numpy(np.asarray(Image.open(path).convert("L")).astype("float32") / 255)[None, None]
"""


@pytest.mark.slow
def test_digits_from_png_files(ray_python: Path, tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    project(
        tmp_path, DIGITS,
        prepared(tmp_path, factory="training.py:build", example={"input": {"shape": [1, 1, 8, 8]}}),
        {"inputs": {"model": MODEL, "golden": "golden"},
         "with": {"picture": {}, "golden": "training.py:prepare", "answer": {"labels": names}}},
        transform={"uses": "push.transform", "inputs": {"package": PACKAGE, "data": "golden"},
                   "with": {"job": "digits"}},
        hub={"uses": "push.hub", "inputs": {"models": {"fp32": ONNX}, "reference": MODEL, "io": IO},
             "with": {"repo": "local/digits"}},
    )  # fmt: skip
    code = code_of(tmp_path)
    data = load_digits()
    levels = (data.images / 16 * 255).round().astype(np.uint8)
    pixels, targets = torch.from_numpy(levels[:1500, None] / np.float32(255)), data.target[:1500]
    net = trained(code.build(), {"input": pixels}, targets)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    (tmp_path / "golden").mkdir()
    files, expected = [], []
    for place in range(1500, 1510):
        path = tmp_path / "golden" / f"{place}.png"
        Image.fromarray(levels[place]).save(path)
        with torch.no_grad():
            scores = net(code.prepare(path)).softmax(-1)[0]
        files.append((path.read_bytes(), "image/png"))
        expected.append((names[int(scores.argmax())], float(scores.max())))
    assert sum(e[0] == names[t] for e, t in zip(expected, data.target[1500:1510], strict=True)) >= 9
    cut = files[0][0][:40]
    bad = [(cut, "image/png"), (b"x", "audio/wav"), (b"{", "application/json")]
    check_targets(tmp_path, files, expected, bad=bad, ray_python=ray_python)
    transformed = fetched(tmp_path, "transform.answers")
    for place, wanted in zip(range(1500, 1510), expected, strict=True):
        answer = json.loads((transformed / f"{place}.png.out").read_text())
        assert (answer["prediction"], answer["score"]) == (wanted[0], pytest.approx(wanted[1], abs=1e-5))


TABLE = """
    import csv, json, torch
    from torch import nn

    PLACES = ["field", "wood", "garden"]
    MEANS, STDS = [5.84, 3.06], [0.83, 0.43]

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.places = nn.Embedding(3, 4)
            self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))

        def forward(self, sizes, place):
            return self.body(torch.cat([sizes, self.places(place)], 1))

    def tensors(row):
        sizes = [(float(row[k]) - m) / s for k, m, s in zip(("length", "width"), MEANS, STDS)]
        return {"sizes": torch.tensor([sizes]), "place": torch.tensor([PLACES.index(row["place"])])}

    def prepare(path):
        with open(path) as file:
            return tensors(json.load(file))
"""


@pytest.mark.slow
def test_a_table_from_rows(tmp_path: Path) -> None:
    import torch
    from sklearn.datasets import load_iris

    columns = [
        {"name": "length", "tensor": "sizes", "mean": 5.84, "std": 0.83},
        {"name": "width", "tensor": "sizes", "mean": 3.06, "std": 0.43},
        {"name": "place", "tensor": "place", "kind": "category", "vocabulary": ["field", "wood", "garden"]},
    ]
    project(
        tmp_path, TABLE,
        prepared(tmp_path, factory="training.py:Mixed", example={
            "sizes": {"shape": [2, 2]}, "place": {"shape": [2], "dtype": "int64", "low": 0, "high": 2}}),
        {"inputs": {"model": MODEL, "golden": "golden", "labels": "labels.json"},
         "with": {"row": {"columns": columns}, "golden": "training.py:prepare"}},
    )  # fmt: skip
    (tmp_path / "labels.json").write_text('["setosa", "versicolor", "virginica"]')
    code = code_of(tmp_path)
    data = load_iris()
    rows = [
        {"length": float(x[0]), "width": float(x[1]), "place": code.PLACES[i % 3]}
        for i, x in enumerate(data.data)
    ]
    inputs = {name: torch.cat([code.tensors(row)[name] for row in rows]) for name in ("sizes", "place")}
    net = trained(code.Mixed(), inputs, data.target)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    (tmp_path / "golden").mkdir()
    files: Files = []
    expected = []
    for place in (0, 50, 149):
        (tmp_path / "golden" / f"{place}.json").write_text(json.dumps(rows[place]))
        with torch.no_grad():
            scores = net(**code.tensors(rows[place])).softmax(-1)[0]
        files.append((json.dumps(rows[place]).encode(), "application/json"))
        expected.append((str(data.target_names[int(scores.argmax())]), float(scores.max())))
    unknown = json.dumps({**rows[0], "place": "moon"}).encode()
    check_targets(
        tmp_path, files, expected, bad=[(unknown, "application/json"), (b"length\n1\n", "text/csv")]
    )


PICTURES = """
    import timm, torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    usual = create_transform(**resolve_data_config({}, model=timm.create_model("test_convnext")))

    def prepare(path):
        return usual(Image.open(path).convert("RGB"))
"""


@pytest.mark.slow
def test_pictures_of_a_model_of_timm(tmp_path: Path) -> None:
    """Stripes, dots and noise, trained here; prepared as timm does it, of photos of any size and form."""
    import timm
    import torch

    kwargs = {"model_name": "test_convnext", "num_classes": 3, "exportable": True}
    params = {"factory": "timm:create_model", "kwargs": kwargs, "example": {"x": {"shape": [2, 3, 160, 160]}}}
    io = {"preprocessor": "timm:test_convnext.r160_in1k", "golden": "training.py:prepare"}
    project(
        tmp_path, PICTURES, prepared(tmp_path, **params),
        {"inputs": {"model": MODEL, "golden": "golden", "labels": "labels.txt"}, "with": io},
    )  # fmt: skip
    (tmp_path / "labels.txt").write_text("stripes\ndots\nnoise\n")
    code = code_of(tmp_path)
    (tmp_path / "golden").mkdir()
    forms = ["JPEG", "PNG", "WEBP"]
    files: Files = []
    for place in range(12):
        body = encoded(_patterned(place), forms[place // 3 % 3])
        files.append((body, f"image/{forms[place // 3 % 3].lower()}"))
        (tmp_path / f"golden/{place:02}.{forms[place // 3 % 3].lower()}").write_bytes(body)
    tensors = torch.stack([code.prepare(path) for path in sorted((tmp_path / "golden").iterdir())])
    net = trained(timm.create_model(**kwargs), {"x": tensors}, np.arange(12) % 3, steps=20)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        best = net(tensors).softmax(-1).max(-1)
    names = ["stripes", "dots", "noise"]
    expected = [(names[i], s) for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    assert sum(e[0] == names[i % 3] for i, e in enumerate(expected)) > 10
    check_targets(
        tmp_path, files, expected, bad=[(files[0][0][:700], "image/jpeg"), (b"GIF89a", "image/gif")]
    )


def _patterned(place: int) -> Any:
    """Return a picture of a class of three, of another size each."""
    from PIL import Image

    height, width = 150 + 17 * place, 400 - 11 * place
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(place).integers(0, 256, (height, width))
    found = [(x // 9 % 2) * 255, ((x // 9 + y // 9) % 2) * 255, noise][place % 3].astype(np.uint8)
    return Image.fromarray(np.stack([found, found, 255 - found], -1))


SENTENCES = """
    import pathlib
    from transformers import AutoTokenizer

    def prepare(path):
        read = AutoTokenizer.from_pretrained("folder")
        return dict(read(pathlib.Path(path).read_text(), truncation=True, max_length=32, return_tensors="pt"))
"""


@pytest.mark.slow
def test_sentences_of_a_folder_of_save_pretrained(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer(tmp_path / "tokenizer.json")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=32, **special
    ).save_pretrained(tmp_path / "folder")
    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, id2label={0: "praise", 1: "blame"}, hidden_dropout_prob=0.0,
    )  # fmt: skip
    texts = ["the film was good", "a bad film, it was dull", "Good!", "dull, dull and bad"] * 2
    project(
        tmp_path, SENTENCES, {"model": {"uses": "model.transformers", "inputs": {"folder": "folder"}}},
        {"inputs": {"model": MODEL, "golden": "golden", "folder": "folder",
                    "files": {"folder": "folder"}},
         "with": {"golden": "training.py:prepare"}},
    )  # fmt: skip
    torch.manual_seed(0)
    read = AutoTokenizer.from_pretrained(str(tmp_path / "folder"))
    batch = dict(read(texts, padding=True, return_tensors="pt"))
    net = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(net.parameters(), 0.003)
    for _ in range(60):
        optimizer.zero_grad()
        net(**batch, labels=torch.tensor([0, 1] * 4)).loss.backward()
        optimizer.step()
    net.eval().save_pretrained(tmp_path / "folder")
    (tmp_path / "golden").mkdir()
    files, expected = [], []
    for place, text in enumerate([*texts[:4], "", "nothing happens here " * 30]):
        (tmp_path / f"golden/{place}.txt").write_text(text)
        with torch.no_grad():
            scores = net(**read(text, truncation=True, max_length=32, return_tensors="pt")).logits.softmax(
                -1
            )[0]
        files.append((text.encode(), "text/plain"))
        expected.append((["praise", "blame"][int(scores.argmax())], float(scores.max())))
    check_targets(tmp_path, files, expected, bad=[(b"\xff", "text/plain"), (b"x" * 300_000, "text/plain")])


SOUNDS = """
    import numpy, soundfile, soxr, torch
    from torch import nn
    from transformers.audio_utils import mel_filter_bank

    class Hearer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(40, 16, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                                      nn.Linear(16, 3))

        def forward(self, mels):
            return self.body(mels)

    filters = torch.tensor(mel_filter_bank(257, 40, 20.0, 7600.0, 16000, norm="slaney", mel_scale="slaney")).float()

    def of_wave(wave):
        wave = torch.from_numpy(numpy.pad(wave[:16000], (0, max(0, 16000 - len(wave)))).astype("float32"))
        power = torch.stft(wave, 512, 160, 400, torch.hann_window(400), return_complex=True).abs() ** 2
        return torch.log(filters.T @ power + 1e-6)

    def prepare(path):
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return of_wave(soxr.resample(wave.mean(1), rate, 16000))
"""


@pytest.mark.slow
def test_sounds_by_their_spectrogram(tmp_path: Path) -> None:
    import torch

    mel = {"n_mels": 40, "n_fft": 512, "win_length": 400, "hop_length": 160, "f_min": 20, "f_max": 7600,
           "scale": "slaney", "norm": "slaney", "log": "ln", "add": 1e-6}  # fmt: skip
    params = {"factory": "training.py:Hearer", "example": {"mels": {"shape": [2, 40, 101]}}}
    io = {"sound": {"rate": 16000, "seconds": 1, "mel": mel}, "golden": "training.py:prepare",
          "answer": {"labels": ["low", "high", "noise"]}, "tolerance": 1e-4}  # fmt: skip
    project(
        tmp_path,
        SOUNDS,
        prepared(tmp_path, **params),
        {"inputs": {"model": MODEL, "golden": "golden"}, "with": io},
    )
    code = code_of(tmp_path)
    (tmp_path / "golden").mkdir()
    files: Files = []
    for place in range(18):
        form, rate = [("WAV", 44_100), ("FLAC", 16_000), ("OGG", 22_050)][place // 3 % 3]
        body = recorded(place, rate, form)
        files.append((body, f"audio/{form.lower()}"))
        (tmp_path / f"golden/{place:02}.{form.lower()}").write_bytes(body)
    tensors = torch.stack([code.prepare(str(path)) for path in sorted((tmp_path / "golden").iterdir())])
    net = trained(code.Hearer(), {"mels": tensors}, np.arange(18) % 3)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        best = net(tensors).softmax(-1).max(-1)
    names = ["low", "high", "noise"]
    expected = [(names[i], s) for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    assert [e[0] for e in expected] == names * 6
    silence = sound_file(np.zeros(16_000 * 61, np.float32), 16_000, "FLAC")
    check_targets(tmp_path, files, expected, bad=[(files[0][0][:3000], "audio/wav"), (silence, "audio/flac")])
