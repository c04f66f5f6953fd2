"""Measure raw input: `python -m benchmarks.raw`, `--quick` for a smoke run.

JPEG to label: the same ONNX file behind `deploy-runner serve --io` and behind the handler that everyone
writes first (FastAPI, Pillow, torchvision's transforms), on the same two cores, asked by the same form
from keep-alive connections; the order turns from round to round, and ratios are taken within a round.
Text to ids: the reader of `model.io` and the `tokenizers` library alone, on the same texts, in turns.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deploy_runner import api

from .contenders import Contender
from .environments import HERE
from .running import running
from .serving import pin_to_two_cores

CLIENTS = 8
SIZES = ((1600, 1200), (640, 480))
MODEL = "${{ stages.model.outputs.model }}"
USUAL = {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
FORM = {"Content-Type": "multipart/form-data; boundary=part"}


def make_model(folder: Path) -> dict[str, Path]:
    """Convert a classifier of torchvision; return its ONNX file and its io."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=10).state_dict(), folder / "model.pt")
    params = {"factory": "torchvision.models:squeezenet1_1", "kwargs": {"num_classes": 10},
              "example": {"x": {"shape": [2, 3, 224, 224]}}}  # fmt: skip
    weights = {"weights": "${{ stages.weights.outputs.weights }}"}
    stages = {
        "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "model.pt"}},
        "model": {"uses": "model.prepare", "inputs": weights, "with": params},
        "onnx": {"uses": "onnx.export", "inputs": {"model": MODEL}},
        "io": {"uses": "model.io", "inputs": {"model": MODEL}, "with": {"picture": USUAL}},
    }
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "name": "raw", "stages": stages}, sort_keys=False))
    pipeline = api.load(file)
    record = api.run(pipeline)
    if record.exit_code:
        raise SystemExit(f"the pipeline fails: {[s.get('error') for s in record.stages.values()]}")
    for output in ("onnx.model", "io.io"):
        command = [sys.executable, "-m", "deploy_runner", "get", output, "--to", str(folder / output)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {"onnx": folder / "onnx.model", "io": folder / "io.io"}


def picture(width: int, height: int) -> bytes:
    """Return a JPEG of waves and noise."""
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 12, (height, width))
    waves = [(np.sin(x / 37 + i) + np.cos(y / (41 + i))) * 60 + 128 + noise for i in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def form(data: bytes) -> bytes:
    """Return the body of a form with one file."""
    head = b'--part\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    return head + b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--part--\r\n"


def contenders(made: dict[str, Path]) -> list[Contender]:
    """Return ours and the naive handler."""

    def ours(programs: Path, model: Path, port: int) -> list[str]:
        return [
            str(programs / "deploy-runner"),
            "serve",
            str(model),
            "--io",
            str(made["io"]),
            "--port",
            str(port),
        ]

    def naive(programs: Path, model: Path, port: int) -> list[str]:
        return [str(programs / "uvicorn"), "naive_pictures:app", "--port", str(port), "--no-access-log"]

    return [Contender("ours", (), "onnx", ours), Contender("naive", (), "onnx", naive)]


def load(port: int, body: bytes, seconds: float) -> tuple[float, list[Any]]:
    """Ask from all clients until the time is over; return the answers a second, and the last of each."""
    until = time.monotonic() + seconds
    counts, last = [0] * CLIENTS, [None] * CLIENTS

    def ask(place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < until:
            connection.request("POST", "/predict", body, FORM)
            last[place] = json.loads(connection.getresponse().read())
            counts[place] += 1

    started = time.monotonic()
    threads = [threading.Thread(target=ask, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started), last


def pictures(rounds: int, seconds: float, folder: Path) -> dict[str, list[float]]:
    """Return of each size the ratios of our throughput to the naive handler's."""
    made = make_model(folder)
    model = next(made["onnx"].rglob("*.onnx"))
    both = contenders(made)
    found: dict[str, list[float]] = {}
    for width, height in SIZES:
        body = form(picture(width, height))
        for turn in range(rounds):
            speeds, answers = {}, {}
            for contender in both if turn % 2 else both[::-1]:
                with running(contender, model, folder, body, FORM["Content-Type"]) as server:
                    load(server.port, body, 1)
                    speeds[contender.name], answers[contender.name] = load(server.port, body, seconds)
            said = {
                (one["prediction"], round(one["score"], 4)) for given in answers.values() for one in given
            }
            if len(said) != 1:
                raise SystemExit(f"the servers answer differently: {said}")
            found.setdefault(f"{width}x{height}", []).append(speeds["ours"] / speeds["naive"])
            print(f"{width}x{height}, {len(body) >> 10} KiB: ours {speeds['ours']:.1f}/s, "
                  f"naive {speeds['naive']:.1f}/s", flush=True)  # fmt: skip
    return found


def texts(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the ratios of our time for texts to that of the tokenizers library alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from deploy_runner.server.raw.text import Text

    words = (HERE.parent / "docs/stages.md").read_text("utf-8").split()
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    spec = {"ids": "ids", "mask": "mask", "types": None, "dtype": "int64", "max_length": 128,
            "truncation": "longest_first", "truncation_side": "right", "padding": "longest", "pad_to": None,
            "padding_side": "right", "pad_id": 0, "pad_token": "[PAD]", "pad_type": 0, "special_tokens": True,
            "max_characters": 200_000, "pairs": False}  # fmt: skip
    ours = Text(spec, folder)

    def alone(given: list[str]) -> None:
        batch = tokenizer.encode_batch(given)
        for part in ("ids", "attention_mask"):
            np.array([getattr(one, part) for one in batch], np.int64)

    found: dict[str, list[float]] = {}
    for name, count, length in (("one sentence", 1, 10), ("32 paragraphs", 32, 80)):
        given = [" ".join(words[i * 7 : i * 7 + length]) for i in range(count)]
        for turn in range(rounds):
            both: list[Callable[[], Any]] = [partial(ours.arrays, given), partial(alone, given)]
            times = {i: _seconds(both[i]) for i in ((0, 1) if turn % 2 else (1, 0))}
            found.setdefault(name, []).append(times[0] / times[1])
    return found


def _seconds(work: Callable[[], Any]) -> float:
    """Return the time of a call: the least of 5 times 50."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(50):
            work()
        best = min(best, time.perf_counter() - started)
    return best


def _medians(found: dict[str, list[float]]) -> list[tuple[str, float]]:
    return [(name, statistics.median(ratios)) for name, ratios in found.items()]


def main() -> int:
    """Run, print, write `results/raw.json`; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.raw", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    args = parser.parse_args()
    pin_to_two_cores()
    rounds, seconds = (1, 2.0) if args.quick else (5, 8.0)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        times = texts(rounds * 3, Path(name))
        speeds = pictures(rounds, seconds, Path(name))
    rows = [
        (f"JPEG {size}: at least 2 times the naive handler", middle, middle >= 2)
        for size, middle in _medians(speeds)
    ]
    rows += [
        (f"{what}: at most 1.1 times tokenizers alone", middle, middle <= 1.1)
        for what, middle in _medians(times)
    ]
    for what, figure, reached in rows:
        print(f"{'reached' if reached else 'MISSED '}  {what}: {figure:.2f}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "raw.json").write_text(json.dumps({"pictures": speeds, "texts": times}, indent=2))
    return 0 if args.quick or all(reached for _, _, reached in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
