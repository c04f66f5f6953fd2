"""Open a converted model of any format by the runtime that its users have."""

from __future__ import annotations

from pathlib import Path

from deploy_runner.sdk import Context, StageError

from ...server import aot
from ..model import bundles, protos
from ..model.compare import Model
from ..openvino import ir
from ..torch import torchscript

_SUFFIXES = ".onnx, .pt, .pt2, .ptl, .pte or OpenVINO's folder"


def open_model(ctx: Context, path: Path, reference: bundles.Bundle | None = None) -> Model:
    """Return a model as a function of arrays by name: any format that a stage makes, or a bundle.

    What has no names of its own takes them from `reference`. Raises StageError for other files.
    """
    if path.is_dir() and (path / "bundle.json").is_file():
        bundle = bundles.load_bundle(path)
        return protos.runner(path, threads=ctx.threads) if bundle.is_onnx else _eager(bundle)
    if (path / ir.FILE_NAME).is_file():
        return ir.runner(path, threads=ctx.threads, outputs=reference.output_names if reference else None)
    path = protos.program_file(path)
    if path.is_dir() or path.suffix == ".onnx":
        return protos.runner(path, threads=ctx.threads)
    if path.suffix not in (".pt", ".pth", ".pt2", ".ptl", ".pte"):
        raise StageError(f"{path.name} is not a model that can be run", fix=f"use {_SUFFIXES}")
    if reference is None:
        raise StageError(f"{path.name} doesn't contain the names of its inputs and outputs",
                         fix="set `reference` to the bundle it was created from")  # fmt: skip
    try:
        return _open(path, reference)
    except StageError:
        reference.module()  # It may need operators that the model's own code registers.
        return _open(path, reference)


def _open(path: Path, bundle: bundles.Bundle) -> Model:
    if path.suffix == ".pt2" and aot.is_aot(path):
        from ..torch.aot import runner
    elif path.suffix == ".pt2":
        from ..torch.export import runner
    elif path.suffix == ".ptl":
        from ..mobile.lite import runner
    elif path.suffix == ".pte":
        from ..mobile.executorch import runner
    else:
        names = (bundle.input_names, bundle.output_names)
        return torchscript.runner(torchscript.load(path), *names)
    return runner(path, bundle)


def _eager(bundle: bundles.Bundle) -> Model:
    return torchscript.runner(bundle.module(), bundle.input_names, bundle.output_names)
