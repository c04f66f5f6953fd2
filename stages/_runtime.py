"""Open a converted model of any format by the runtime that its users have."""

from __future__ import annotations

import zipfile
from pathlib import Path

from deploy_runner.sdk import Context, StageError

from . import _bundle, _onnx, _torchscript
from ._parity import Model


def open_model(ctx: Context, path: Path, reference: _bundle.Bundle | None = None) -> Model:
    """Return a model as a function of arrays by name: ONNX, TorchScript, or a bundle itself.

    TorchScript has no names of its own: `reference` gives them. Raises StageError for others.
    """
    if path.is_dir() and (path / "bundle.json").is_file():
        return _eager(_bundle.load_bundle(path))
    if path.is_dir() or path.suffix == ".onnx":
        return _onnx.runner(path, threads=ctx.threads)
    if zipfile.is_zipfile(path):
        if reference is None:
            raise StageError("a TorchScript model needs the bundle it was made from as `reference`")
        program = _torchscript.load(path)
        return _torchscript.runner(program, reference.input_names, reference.output_names)
    raise StageError(f"{path.name} is neither ONNX nor TorchScript")


def _eager(bundle: _bundle.Bundle) -> Model:
    return _torchscript.runner(bundle.module(), bundle.input_names, bundle.output_names)


def model_bytes(path: Path) -> int:
    """Return the size of a model artifact."""
    return _onnx.size_bytes(path)
