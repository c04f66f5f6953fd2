"""Serve this model in a SageMaker inference container: the four functions it calls.

Requests: application/json ({"inputs": {NAME: nested lists}}, {"inputs": […]}, {"instances": […]} or a list),
text/csv (one sample a line, for models with one input), application/x-npy (one input), and
application/x-npz. Responses: application/json, text/csv or application/x-npy. Lists and lines of
samples have them first, wherever the model has its batch; arrays have the model's own shape.

The model runs on the device that model.json says, and on no other.

With io/ beside the model, pictures, texts, sounds and rows are taken too, and {"data": values}, and
answered as io/io.json says.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any, Dict

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)  # Whoever loads this file by its path alone has it nowhere.

from handlers import CSV, JSON, NPY, NPZ, Refused, arrays_of, listed, only, reason, rows_of, written  # noqa: E402
from runtime.devices import onnx_session, torch_device  # noqa: E402

LISTED = ("samples",)


class Answer(Dict[str, Any]):
    """Arrays by output name; `batch` is the axis of the samples in the first."""

    batch = 0


class Raw(Dict[Any, Any]):
    """Inputs by name, samples first, of raw input that was read; `given` makes the answers one."""

    given: Any = None


class Ready(Dict[str, Any]):
    """What is answered as it is."""


def _raw_io() -> Any:
    """Return what reads raw input, None where the package has no io/."""
    folder = os.path.join(os.path.dirname(HERE), "io")
    if not os.path.isdir(folder):
        return None
    if folder not in _OPEN:
        from raw.rawio import RawIo

        _OPEN[folder] = RawIo(pathlib.Path(folder))
    return _OPEN[folder]


_OPEN: Dict[str, Any] = {}


def model_fn(model_dir: str) -> dict[str, Any]:
    """Load the model, and model.json which names its inputs and outputs."""
    with open(os.path.join(model_dir, "model.json"), encoding="utf-8") as file:
        described = json.load(file)
    file_name, device = os.path.join(model_dir, described["file"]), described.get("device", "cpu")
    if described["format"] == "onnx":
        import onnxruntime

        return {
            "described": described,
            "session": onnx_session(file_name, onnxruntime.SessionOptions(), device),
        }
    import torch

    place = torch_device(device)
    program = torch.jit.load(file_name, map_location=place)
    return {"described": described, "program": program.eval(), "place": place}


def input_fn(body: str | bytes, content_type: str) -> dict[Any, Any]:
    """Return arrays by input name; of a single one that isn't named, under None, or LISTED its samples."""
    io_ = _raw_io()
    try:
        given = None if io_ is None else _given(io_, body, content_type)
        return _tensors(body, content_type) if given is None else given
    except Refused:
        raise
    except Exception as error:  # Whatever a reader raises, it is the request that it can't read.
        raise Refused(400, f"the request can't be read: {reason(error)}") from None


def _tensors(body: str | bytes, content_type: str) -> Any:
    kind = content_type.split(";")[0].strip().lower()
    if kind == JSON:
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(value.get("inputs"), dict):
            return dict(value["inputs"])
        if isinstance(value, dict) and not {"inputs", "instances"} & set(value):
            raise Refused(400, "the request has neither 'inputs' nor 'instances'")
        return {LISTED: value.get("inputs", value.get("instances")) if isinstance(value, dict) else value}
    data = body.encode() if isinstance(body, str) else bytes(body)
    if kind == CSV:
        return {LISTED: rows_of(data)}
    if kind in (NPY, NPZ):
        return arrays_of(data)
    raise Refused(415, f"the content type {content_type!r} is not supported")


def _given(io_: Any, body: str | bytes, content_type: str) -> Raw | None:
    """Return the inputs of raw input, and of {"data": values}; None for tensors in other forms."""
    from raw.problems import BadInput
    from raw.requests import Given, of_body

    data = body.encode() if isinstance(body, str) else bytes(body)
    try:
        given = of_body(data, content_type, io_.kinds)
        found = Raw() if given is None else Raw(io_.arrays(given.samples))
    except BadInput as error:
        raise Refused(error.status, str(error)) from None
    if given is not None:
        found.given = given
        return found
    if content_type.split(";")[0].strip() != "application/json":
        return None
    value = json.loads(data)
    if not isinstance(value, dict) or list(value) != ["data"]:
        return None
    found = Raw({LISTED: value["data"]})
    found.given = Given([], alone=True)
    return found


def _answered(arrays: Raw, model: dict[str, Any]) -> Ready:
    ports, outputs = model["described"]["inputs"], model["described"]["outputs"]
    feed = {}
    for port in ports:
        array = arrays[LISTED] if LISTED in arrays else arrays[port["name"]]
        placed = _samples(array, port) if LISTED in arrays else np.moveaxis(array, 0, port.get("batch") or 0)
        feed[port["name"]] = np.array(placed, dtype=port["dtype"], order="C")
    made = {port["name"]: np.moveaxis(array, port.get("batch") or 0, 0)
            for port, array in zip(outputs, _run(model, feed))}  # fmt: skip
    first = {port["name"]: np.moveaxis(feed[port["name"]], port.get("batch") or 0, 0) for port in ports}
    beside = {name: array for name, array in arrays.items() if name != LISTED and name not in feed}
    answers = _raw_io().answers(made, {**first, **beside})
    alone = arrays.given.alone and len(answers) == 1
    return Ready(answers[0] if alone else {"predictions": answers})


def predict_fn(arrays: dict[Any, Any], model: dict[str, Any]) -> Answer | Ready:
    """Run the model; return arrays by output name, or what answers raw input."""
    if isinstance(arrays, Raw):
        return _answered(arrays, model)
    ports, outputs = model["described"]["inputs"], model["described"]["outputs"]
    if None in arrays:
        arrays = {ports[0]["name"]: arrays[None]}
    if LISTED in arrays:
        arrays = {ports[0]["name"]: _samples(arrays[LISTED], ports[0])}
    feed = {port["name"]: _shaped(arrays, port) for port in ports}
    answer = Answer(zip([port["name"] for port in outputs], _run(model, feed)))
    answer.batch = outputs[0].get("batch") or 0
    return answer


def _run(model: dict[str, Any], feed: dict[str, Any]) -> list[Any]:
    if "session" in model:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        names = [port["name"] for port in model["described"]["outputs"]]
        try:
            return list(model["session"].run(names, feed))
        except InvalidArgument as error:
            raise Refused(400, f"the model doesn't take it: {reason(error)}") from None
    import torch

    try:
        with torch.no_grad():
            arrays = [torch.from_numpy(array).to(model["place"]) for array in feed.values()]
            result = model["program"](*arrays)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Refused(400, f"the model doesn't take it: {reason(error)}") from None
    return [leaf.cpu().numpy() for leaf in torch.utils._pytree.tree_leaves(result)]


def _samples(listed: Any, port: dict[str, Any]) -> Any:
    """Return samples, which come first where they are listed, along the axis where the input has them."""
    axis = port.get("batch") or 0
    sample = port["shape"][:axis] + port["shape"][axis + 1 :]
    try:
        array = np.asarray(listed)
        if array.ndim != len(port["shape"]):
            array = array.reshape([-1, *sample])
    except ValueError:
        raise Refused(400, f"a sample has the shape {sample}, which the request's don't have") from None
    if not len(array):
        raise Refused(400, "the request has no samples")
    return np.moveaxis(array, 0, axis)


def _shaped(arrays: dict[Any, Any], port: dict[str, Any]) -> Any:
    name, shape = port["name"], port["shape"]
    if name not in arrays:
        raise Refused(400, f"the input {name!r} is missing, the request has {list(arrays)}")
    try:
        array = np.array(arrays[name], dtype=port["dtype"], order="C")
        if array.ndim != len(shape):
            array = array.reshape([-1, *shape[1:]])
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(400, f"the input {name!r} is no array of {port['dtype']} {shape}: {error}") from None
    free = port.get("dynamic", {})
    fixed = {axis: size for axis, size in enumerate(shape)
             if size >= 0 and axis != port.get("batch") and str(axis) not in free}  # fmt: skip
    if any(array.shape[axis] != size for axis, size in fixed.items()):
        raise Refused(400, f"the input {name!r} has the shape {shape}, {list(array.shape)} was given")
    return array


def output_fn(prediction: dict[str, Any], accept: str) -> Any:
    """Return the response in the accepted type."""
    kind = accept.split(";")[0].strip().lower()
    if isinstance(prediction, Ready):
        return json.dumps(prediction)
    if kind in (JSON, "*/*", ""):
        return json.dumps({"outputs": {name: listed(array) for name, array in prediction.items()}})
    if kind in (CSV, NPY):
        first = only(prediction, kind)
        if kind == CSV and first.ndim:
            first = np.moveaxis(first, getattr(prediction, "batch", 0), 0)
        return written(first, kind)
    raise Refused(406, f"the response type {accept!r} is not supported")
