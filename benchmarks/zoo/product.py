"""The same model through the product: a pipeline as its user writes it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from deploy_runner import api
from deploy_runner.types import Event, RunOptions

from .building import HAND
from .entries import Entry, Given, made
from .isolated import peak_bytes

__all__ = ["copy_code", "exported", "fetched", "run", "write_pipeline", "write_project"]

MODEL = "${{ stages.model.outputs.model }}"
FLOAT = "${{ stages.onnx.outputs.model }}"


def write_project(entry: Entry, folder: Path) -> None:
    """Write pipeline.yaml, and the user's code beside it."""
    stages = exported(entry)
    stages["dynamic_int8"] = {"uses": "onnx.quantize_dynamic", "inputs": {"model": FLOAT, "reference": MODEL}}
    if _is_sampled(entry):
        stages["static_int8"] = {
            "uses": "onnx.quantize_static",
            "inputs": {"model": FLOAT, "calibration": MODEL, "reference": MODEL},
        }
    write_pipeline(stages, folder)
    copy_code(entry, folder)


def write_pipeline(stages: Mapping[str, Any], folder: Path) -> None:
    """Write pipeline.yaml."""
    text = yaml.safe_dump({"version": 1, "name": "zoo", "stages": stages}, sort_keys=False)
    (folder / "pipeline.yaml").write_text(text)


def copy_code(entry: Entry, folder: Path) -> None:
    """Copy the file that a factory is in, if it is not a library's."""
    code, _, _ = entry.factory.partition(":")
    if code.endswith(".py"):
        shutil.copyfile(HAND / code, folder / code)


def exported(entry: Entry, place: str = "", prefix: str = "") -> dict[str, Any]:
    """Return the stages from the files in a place to the ONNX file; their names begin with the prefix."""
    if entry.folder:
        folder = {"folder": f"{place}folder"}
        stages = {"model": {"uses": "model.transformers", "inputs": folder, "with": dict(entry.params)}}
    else:
        weights = f"${{{{ stages.{prefix}weights.outputs.weights }}}}"
        params = _params(entry)
        if entry.factory.partition(":")[0].endswith(".py"):
            params["factory"] = place + entry.factory
        checkpoint = {"checkpoint": f"{place}model.pt"}
        stages = {
            "weights": {"uses": "checkpoint.state_dict", "inputs": checkpoint},
            "model": {"uses": "model.prepare", "inputs": {"weights": weights}, "with": params},
        }
    model = f"${{{{ stages.{prefix}model.outputs.model }}}}"
    stages["onnx"] = {"uses": "onnx.export", "inputs": {"model": model}}
    return {prefix + name: stage for name, stage in stages.items()}


def _is_sampled(entry: Entry) -> bool:
    """Say whether noise is as good as a sample: not of ids and masks."""
    return all(given.dtype == "float32" for given in entry.inputs.values())


def _params(entry: Entry) -> dict[str, Any]:
    shapes = {name: array.shape for name, array in made(entry, "the example").items()}
    return {
        "factory": entry.factory,
        "kwargs": dict(entry.kwargs),
        "example": {name: _example(given, list(shapes[name])) for name, given in entry.inputs.items()},
        "dynamic": {name: {str(axis): _axis(entry, label) for axis, label in axes.items()}
                    for name, axes in entry.dynamic.items() if axes},
        **entry.params,
    }  # fmt: skip


def _axis(entry: Entry, label: str) -> str | dict[str, Any]:
    multiple = entry.multiples.get(label)
    return {"name": label, "multiple_of": multiple} if multiple else label


def _example(given: Given, shape: list[int]) -> dict[str, Any]:
    example: dict[str, Any] = {"shape": shape, "dtype": given.dtype}
    if given.fill != "random":
        return {**example, "fill": given.fill}
    return example if given.dtype.startswith("float") else {**example, "low": given.low, "high": given.high}


def run(folder: Path) -> dict[str, Any]:
    """Run the pipeline; return of each stage its state, error, figures, seconds and peak of memory."""
    pipeline = api.load(folder / "pipeline.yaml")
    watch = _Watch()

    def told(event: Event) -> None:
        if event.kind == "stage-started":
            watch.begin(event.stage)
        elif event.kind == "stage-finished":
            watch.end()

    with watch:
        record = api.run(pipeline, options=RunOptions(cpu=1), on_event=told)
    kept = ("state", "seconds", "error", "figures")
    return {"stages": {
        name: {key: stage.get(key) for key in kept} | watch.found.get(name, {})
        for name, stage in record.stages.items()
    }}  # fmt: skip


class _Watch(threading.Thread):
    """Follows the one worker that runs: its seconds of CPU, and its peak of memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: dict[str, dict[str, float]] = {}
        self._stage = ""
        self._before: dict[int, float] = {}
        self._done = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def begin(self, stage: str) -> None:
        """Take whichever process computes from now on for the stage's worker."""
        self._before = {process.pid: seconds for process, seconds in _processes()}
        self._stage = stage

    def end(self) -> None:
        """Follow none."""
        self._stage = ""

    def run(self) -> None:
        """Look at all processes below this one, time and again."""
        while not self._done.wait(0.05):
            if stage := self._stage:
                used = {process.pid: seconds - self._before.get(process.pid, 0.0)
                        for process, seconds in _processes()}  # fmt: skip
                worker = max(used, key=lambda pid: used[pid], default=0)
                if used.get(worker):
                    most = self.found.setdefault(stage, {"cpu_seconds": 0.0, "peak_bytes": 0})
                    most["cpu_seconds"] = max(most["cpu_seconds"], used[worker])
                    most["peak_bytes"] = max(most["peak_bytes"], peak_bytes(worker))


def _processes() -> Iterator[tuple[psutil.Process, float]]:
    """Yield the processes below this one, and their seconds of CPU."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            yield process, used.user + used.system


def fetched(folder: Path, place: Path, stage: str = "onnx") -> Path:
    """Copy the ONNX artifact out of the store."""
    command = [sys.executable, "-m", "deploy_runner", "get", f"{stage}.model", "--to", str(place)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return place / "model.onnx"
