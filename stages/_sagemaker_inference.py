"""Serve this model in a SageMaker inference container: the four functions it calls.

Requests: application/json ({"inputs": {NAME: nested lists}}, {"instances": […]} or a bare list),
text/csv (one sample a line, for models with one input), application/x-npy (one input), and
application/x-npz. Responses: application/json, text/csv or application/x-npy.
"""

import io
import json
import os

import numpy as np


def model_fn(model_dir):
    """Load the model, and model.json which names its inputs and outputs."""
    with open(os.path.join(model_dir, "model.json"), encoding="utf-8") as file:
        described = json.load(file)
    if described["format"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(
            os.path.join(model_dir, described["file"]), providers=["CPUExecutionProvider"]
        )
        return {"described": described, "session": session}
    import torch

    program = torch.jit.load(os.path.join(model_dir, described["file"]), map_location="cpu")
    return {"described": described, "program": program.eval()}


def input_fn(body, content_type):
    """Return arrays by input name; an unnamed single input is under None."""
    kind = content_type.split(";")[0].strip()
    if kind == "application/json":
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(value.get("inputs"), dict):
            return value["inputs"]
        if isinstance(value, dict) and "instances" not in value:
            raise ValueError("the request has neither 'inputs' by name nor 'instances'")
        return {None: value["instances"] if isinstance(value, dict) else value}
    data = body.encode() if isinstance(body, str) else body
    if kind == "text/csv":
        return {None: np.loadtxt(io.StringIO(data.decode()), delimiter=",", ndmin=2)}
    if kind == "application/x-npy":
        return {None: np.load(io.BytesIO(data), allow_pickle=False)}
    if kind == "application/x-npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    raise ValueError(f"the content type {content_type!r} is not supported")


def predict_fn(arrays, model):
    """Run the model; return arrays by output name."""
    ports = model["described"]["inputs"]
    if None in arrays:
        arrays = {ports[0]["name"]: arrays[None]}
    feed = {port["name"]: _shaped(arrays, port) for port in ports}
    names = [port["name"] for port in model["described"]["outputs"]]
    if "session" in model:
        return dict(zip(names, model["session"].run(names, feed)))
    import torch

    with torch.no_grad():
        result = model["program"](*(torch.from_numpy(feed[port["name"]]) for port in ports))
    leaves = torch.utils._pytree.tree_leaves(result)
    return {name: leaf.numpy() for name, leaf in zip(names, leaves)}


def _shaped(arrays, port):
    if port["name"] not in arrays:
        raise ValueError(f"the input {port['name']!r} is missing, there are {list(arrays)}")
    array = np.ascontiguousarray(arrays[port["name"]], dtype=port["dtype"])
    shape = port["shape"]
    if array.ndim != len(shape):
        array = array.reshape([-1, *shape[1:]])
    return array


def _listed(array):
    """Return nested lists; JSON has no number for what isn't finite: null."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array, None)
    return array.tolist()


def output_fn(prediction, accept):
    """Return the response in the accepted type."""
    kind = accept.split(";")[0].strip()
    if kind in ("application/json", "*/*", ""):
        return json.dumps({"outputs": {name: _listed(a) for name, a in prediction.items()}})
    first = next(iter(prediction.values()))
    if kind == "text/csv":
        buffer = io.StringIO()
        np.savetxt(buffer, first.reshape(len(first), -1), delimiter=",", fmt="%.9g")
        return buffer.getvalue()
    if kind == "application/x-npy":
        buffer = io.BytesIO()
        np.save(buffer, first, allow_pickle=False)
        return buffer.getvalue()
    raise ValueError(f"the response type {accept!r} is not supported")
