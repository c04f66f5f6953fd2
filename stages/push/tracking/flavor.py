"""A model in MLflow's ONNX flavor: our own file, with the signature of its real shapes and types."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy_runner.sdk import Context, StageError, sha256_file

from ...model import bundles, protos
from ...model.compare import compare, gate
from ...package import packed
from ...package.smoke import few_rows

__all__ = ["digest_of", "save"]

_NEEDED = ("onnx", "onnxruntime", "numpy", "pandas")


def digest_of(model: Path, reference: Path | None) -> tuple[dict[str, Path], str]:
    """Return the model's files by name, and their digest: that of the sorted JSON of name to SHA-256.

    Raises StageError for what is no ONNX model.
    """
    file = protos.program_file(model)
    if file.is_file() and file.suffix != ".onnx":
        raise StageError(f"{file.name} is no ONNX model", fix="use the output `model` of an onnx stage")
    files, _ = packed.model_files(model, reference)
    row = json.dumps({name: sha256_file(path) for name, path in files.items()}, sort_keys=True)
    return files, hashlib.sha256(row.encode()).hexdigest()


def save(ctx: Context, model: Path, files: Mapping[str, Path], reference: Path | None) -> Path:
    """Write MLflow's folder of the model, load it by MLflow and compare it with the model on the cases."""
    import mlflow.onnx
    import mlflow.pyfunc

    from ...verify import runtime

    bundle = bundles.load_bundle(reference) if reference else None
    _, described = packed.model_files(model, reference)
    folder = ctx.workdir / "model"
    mlflow.onnx.save_model(
        protos.load_proto(model), folder, signature=_signature(described),
        input_example=few_rows(bundle.cases[0]) if bundle else None,
        pip_requirements=[f"{name}=={version(name)}" for name in _NEEDED],
        onnx_execution_providers=["CPUExecutionProvider"],
    )  # fmt: skip
    for old in folder.glob("*.onnx*"):
        old.unlink()
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    loaded = mlflow.pyfunc.load_model(str(folder))
    if bundle is not None:
        original = runtime.open_model(ctx, model, bundle)
        cases = [replace(case, outputs=original(case.inputs), allowed={}) for case in bundle.cases]
        gate(ctx, compare(cases, lambda arrays: dict(loaded.predict(dict(arrays)))),
             fix="try another version of mlflow")  # fmt: skip
    return folder


def _signature(described: Mapping[str, Any]) -> Any:
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    def schema(ports: Any) -> Any:
        return Schema([TensorSpec(np.dtype(p["dtype"]), tuple(p["shape"]), p["name"]) for p in ports])

    return ModelSignature(schema(described["inputs"]), schema(described["outputs"]))
