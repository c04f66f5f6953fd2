"""Open a converted model of any format by the runtime that its users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy_runner.sdk import Context, Field, StageError, StageParams

from ...server import aot, devices
from ...server.devices import Device
from ...server.problems import UnfitArtifact
from ..model import bundles, protos
from ..model.compare import Model
from ..openvino import ir
from ..torch import torchscript

_SUFFIXES = ".onnx, .pt, .pt2, .ptl, .pte or OpenVINO's folder"


class OnDevice(StageParams):
    """Where the models run."""

    device: Device = Field(
        "cpu",
        description="where models run: cpu, or cuda: a GPU, which the stage gets (not for every format)",
    )

    def gpus_needed(self) -> int:
        """Return how many GPUs the stage needs."""
        return int(self.device == "cuda")


def open_model(
    ctx: Context, path: Path, reference: bundles.Bundle | None = None, *, device: Device = "cpu"
) -> Model:
    """Return a model as a function of arrays by name: any format that a stage makes, or a bundle.

    What has no names of its own takes them from `reference`. Raises StageError for other files, and where
    the machine lacks the device.
    """
    if path.is_dir() and (path / "bundle.json").is_file():
        bundle = bundles.load_bundle(path)
        if bundle.is_onnx:
            return protos.runner(path, threads=ctx.threads, device=device)
        return _torch(bundle.module(), bundle, device)
    if (path / ir.FILE_NAME).is_file():
        _require_cpu(path, device)
        return ir.runner(path, threads=ctx.threads, outputs=reference.output_names if reference else None)
    if (path / "Manifest.json").is_file():
        raise StageError("a Core ML package can't be run here: Core ML runs on macOS alone",
                         fix="compare it on a Mac, with the output `proof` of coreml.convert")  # fmt: skip
    path = protos.program_file(path)
    if path.is_dir() or path.suffix == ".onnx":
        return protos.runner(path, threads=ctx.threads, device=device)
    if path.suffix not in (".pt", ".pth", ".pt2", ".ptl", ".pte"):
        raise StageError(f"{path.name} is not a model that can be run", fix=f"use {_SUFFIXES}")
    if reference is None:
        raise StageError(f"{path.name} doesn't contain the names of its inputs and outputs",
                         fix="set `reference` to the bundle it was created from")  # fmt: skip
    try:
        return _open(path, reference, device)
    except StageError:
        reference.module()  # It may need operators that the model's own code registers.
        return _open(path, reference, device)


def _open(path: Path, bundle: bundles.Bundle, device: Device) -> Model:
    if path.suffix in (".pt", ".pth"):
        return _torch(torchscript.load(path), bundle, device)
    _require_cpu(path, device)
    if path.suffix == ".pt2" and aot.is_aot(path):
        from ..torch.aot import runner
    elif path.suffix == ".pt2":
        from ..torch.export import runner
    elif path.suffix == ".ptl":
        from ..mobile.lite import runner
    else:
        from ..mobile.executorch import runner
    return runner(path, bundle)


def _require_cpu(path: Path, device: Device) -> None:
    if device != "cpu":
        raise StageError(f"{path.name} can't be run on a GPU here", fix="remove `device`, or use ONNX")


def _torch(module: Any, bundle: bundles.Bundle, device: Device) -> Model:
    try:
        place = devices.torch_device(device)
    except UnfitArtifact as error:
        raise StageError(str(error)) from error
    return torchscript.runner(module.to(place), bundle.input_names, bundle.output_names, place)
