"""A model's files by their name in a package, and model.json, which describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError

from ...server import aot
from ..model import axes, bundles, external, protos

__all__ = ["model_files"]

_TORCHSCRIPT, _AOT = "model.pt", "model.pt2"


def model_files(model: Path, reference: Path | None) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the model's files by their name in the package, and what model.json says.

    Raises StageError for a TorchScript file without the bundle that names its inputs, for an exported
    program, which has to be compiled first, and for an ONNX model whose external data leaves its file or
    its folder.
    """
    model = protos.program_file(model)
    if model.is_file() and aot.is_aot(model):
        return {_AOT: model}, {"format": "aot", "file": _AOT, **_compiled(model, reference)}
    if model.suffix == ".pt2":
        raise StageError(
            "an exported program (.pt2) can't be served as it is", fix="compile it with torch.aot"
        )
    if model.is_file() and model.suffix != ".onnx":
        if reference is None:
            raise StageError("a TorchScript model needs `reference`, the bundle with the names of its inputs")
        bundle = bundles.load_bundle(reference)
        ports = {
            "inputs": [port.as_dict() for port in bundle.inputs],
            "outputs": [port.as_dict() for port in bundle.outputs],
        }
        return {_TORCHSCRIPT: model}, {"format": "torchscript", "file": _TORCHSCRIPT, **ports}
    file = protos.onnx_file(model)
    files = {protos.FILE_NAME: file}
    if (data := file.with_name(protos.DATA_NAME)).is_file():
        files[protos.DATA_NAME] = data
    proto = protos.load_proto(model, weights=False)
    external.check_external_data(proto, file.parent)
    weights = {tensor.name for tensor in proto.graph.initializer}
    given = [value for value in proto.graph.input if value.name not in weights]
    ports = {"inputs": _ports(given), "outputs": _ports(proto.graph.output)}
    _set_batches(ports, bundles.load_bundle(reference) if reference else None)
    return files, {"format": "onnx", "file": protos.FILE_NAME, **ports}


def _compiled(model: Path, reference: Path | None) -> dict[str, Any]:
    """Return what a package of torch.aot says of itself, of another one what the bundle says."""
    described = aot.described(model)
    if "inputs" in described:
        return described
    if reference is None:
        raise StageError(
            "a package that torch.aot didn't make needs `reference`, the bundle with its inputs' names"
        )
    bundle = bundles.load_bundle(reference)
    return {
        "inputs": [port.as_dict() for port in bundle.inputs],
        "outputs": [port.as_dict() for port in bundle.outputs],
        "axes": [axis.as_dict() for axis in bundle.axes.values()],
    }


def _ports(values: Any) -> list[dict[str, Any]]:
    import onnx

    ports = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        dynamic = {str(i): d.dim_param for i, d in enumerate(tensor.shape.dim) if d.dim_param}
        ports.append({"name": value.name, "dtype": dtype, "shape": shape, "dynamic": dynamic})
    return ports


def _set_batches(ports: dict[str, list[dict[str, Any]]], bundle: bundles.Bundle | None) -> None:
    """Say each port's axis of samples, if the file lets it have any size: the bundle's, else by its label."""
    batch, _ = axes.batch_label([_labels(port) for port in ports["inputs"]])
    said = {p.name: p.batch for p in (*bundle.inputs, *bundle.outputs)} if bundle else {}
    for port in (*ports["inputs"], *ports["outputs"]):
        axis = said.get(port["name"], axes.axis_of(_labels(port), batch) if batch else 0)
        free = axis is not None and axis < len(port["shape"]) and port["shape"][axis] < 0
        port["batch"] = axis if free else None


def _labels(port: dict[str, Any]) -> dict[int, str]:
    return {int(axis): label for axis, label in port["dynamic"].items()}
