"""Find, clean, save and run ONNX models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest, first_line

from ...server.devices import Device, onnx_session
from ...server.problems import UnfitArtifact
from .compare import Model, taken

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FILE_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
SINGLE_FILE_BYTES = 500_000_000
"""What is larger keeps its weights in DATA_NAME beside it, so that nobody holds all of them at once.

Protobuf's own limit is 2 GiB, but writing a message takes several times its size.
"""


def program_file(path: Path) -> Path:
    """Return the artifact, or of a folder that `select` copied a program of torch into that one file."""
    found = sorted(path.glob("model.pt*")) if path.is_dir() else []
    return found[0] if len(found) == 1 else path


def onnx_file(path: Path) -> Path:
    """Return the .onnx file of an artifact: the file itself, or the one in its folder."""
    if path.is_file():
        return path
    file = path / FILE_NAME
    others = sorted(path.glob("*.onnx"))
    if not file.is_file() and len(others) == 1:
        return others[0]
    if not file.is_file():
        raise StageError(f"the folder {path.name} contains no {FILE_NAME}",
                         fix="use the output `model` of an onnx stage")  # fmt: skip
    return file


def size_bytes(path: Path) -> int:
    """Return the size of a model with its external data; a bundle of model.onnx is more than its model."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    if (path / FILE_NAME).is_file():
        files = [f for f in files if f.name not in ("bundle.json", "reference.npz")]
    return sum(f.stat().st_size for f in files)


def load_proto(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a model. Raises StageError where it isn't one."""
    import onnx

    try:
        model = onnx.load(onnx_file(path), load_external_data=weights)
    except Exception as error:
        raise StageError(f"the ONNX model is truncated or damaged: {first_line(error)}",
                         fix="export it again") from error  # fmt: skip
    if not model.graph.output:
        raise StageError("the ONNX model is empty: its graph has no output", fix="export it again")
    return model


def save_proto(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model into a folder with bytes that depend on the graph alone; return its file.

    Names of source files, stack traces and documentation are taken out.
    """
    import onnx

    clean(model)
    folder.mkdir(exist_ok=True)
    file = folder / FILE_NAME
    if model.ByteSize() < SINGLE_FILE_BYTES:
        file.write_bytes(model.SerializeToString(deterministic=True))
        return file
    onnx.save(model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=DATA_NAME)
    return file


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _of_nodes(graph.node)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model's graphs and functions."""
    yield from all_tensors(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from all_tensors(inner)


def clean(model: onnx.ModelProto) -> None:
    """Remove what differs between two exports of one model on two machines."""
    del model.metadata_props[:]
    model.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        _clean_nodes(function.node)
    _clean_graph(model.graph)


def _clean_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for group in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in group:
            value.doc_string = ""
            del value.metadata_props[:]
    _clean_nodes(graph.node)


def _clean_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _clean_graph(attribute.g)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model uses."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def refuse_unknown_nodes(model: onnx.ModelProto, excluded: list[str]) -> None:
    """Raise StageError for a name of `exclude` that no node has."""
    names = [node.name for node in model.graph.node]
    for name in excluded:
        if name not in names:
            raise StageError(f"exclude: the model has no node {name!r}, only {', '.join(names[:8])}, …",
                             fix=closest(name, names))  # fmt: skip


_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger",
              "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"}  # fmt: skip


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Raise StageError for a model that holds int8 already: a second time breaks it."""
    found = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if found:
        raise StageError(f"the model is already quantized: it contains {', '.join(found)}",
                         fix="use the float model of onnx.export")  # fmt: skip


def session(
    path: Path, *, threads: int, lean: bool = False, device: Device = "cpu"
) -> onnxruntime.InferenceSession:
    """Open a model; `lean` runs slower, from the file's own pages, without copies of weights.

    Raises StageError where the runtime can't load it, or has no such device.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # Errors are raised.
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnx_session(str(onnx_file(path)), options, device)
    except UnfitArtifact as error:
        raise StageError(str(error)) from error
    except Exception as error:
        raise StageError(f"onnxruntime can't load the model: {first_line(error)}") from error


def runner(path: Path, *, threads: int, lean: bool = False, device: Device = "cpu") -> Model:
    """Return a model as a function of arrays by name; `lean` and `device` as in session()."""
    return running(session(path, threads=threads, lean=lean, device=device))


def running(opened: onnxruntime.InferenceSession) -> Model:
    """Return an open model as a function of arrays by name."""
    inputs = [i.name for i in opened.get_inputs()]
    outputs = [o.name for o in opened.get_outputs()]

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        feed = taken(arrays, inputs)
        try:
            results = opened.run(outputs, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
            said = f"the model can't run inputs of shape {shapes}: {first_line(error)}"
            raise StageError(said, fix="use arrays with the model's shapes and types") from error
        return dict(zip(outputs, results, strict=True))

    return run
