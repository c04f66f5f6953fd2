"""A package's `code/inference.py`, called by the rules of SageMaker's PyTorch toolkit.

`model_fn` once, then for each request `transform_fn`, or `input_fn`, `predict_fn` and `output_fn`. What a
script leaves out is one of this module's functions, which read and answer as the toolkit's own do, but
refuse a wrong request with 4xx and a sentence. It is packed beside a script, so it needs nothing else of
deploy-runner; the package's own inference.py reads and writes by it. Source of the rules:
https://github.com/aws/sagemaker-inference-toolkit/blob/master/src/sagemaker_inference/transformer.py and
https://github.com/aws/sagemaker-pytorch-inference-toolkit/blob/master/src/sagemaker_pytorch_serving_container/default_pytorch_inference_handler.py
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "CSV", "HOOKS", "JSON", "NPY", "NPZ", "STEPS", "Handlers", "Refused", "arrays_of", "input_fn", "listed",
    "model_fn", "only", "output_fn", "predict_fn", "reason", "rows_of", "written",
]  # fmt: skip

STEPS = ("input_fn", "predict_fn", "output_fn")
HOOKS = ("pre_model_fn", "model_warmup_fn")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Else onnxruntime reports to its maker.
JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"

try:  # Where the container is SageMaker's own, a refusal has a status.
    from sagemaker_inference.errors import GenericInferenceToolkitError as _Error
except ImportError:

    class _Error(Exception):  # type: ignore[no-redef]
        def __init__(self, status_code: int, message: str) -> None:
            super().__init__(message)
            self.status_code, self.message = status_code, message


class Refused(_Error, ValueError):  # type: ignore[misc]
    """A request that can't be answered, with the HTTP status that says so."""


class Handlers:
    """The functions of a package's script; `load` makes the model that they answer by.

    Raises ImportError where the script isn't one that the toolkit takes, and whatever it raises itself.
    """

    def __init__(self, folder: Path, program: str = "inference.py") -> None:
        self._folder = folder
        sys.path.insert(0, str(folder / "code"))
        script = _imported(folder / "code" / program)
        own = [name for name in STEPS if callable(getattr(script, name, None))]
        self._transform = getattr(script, "transform_fn", None)
        if self._transform and own:
            raise ImportError(f"code/{program} defines transform_fn, which stands for {own[0]} too: "
                              "the container takes either")  # fmt: skip
        self._model_fn = getattr(script, "model_fn", model_fn)
        self._steps = [getattr(script, name, None) or globals()[name] for name in STEPS]
        self._before, self._after = (getattr(script, name, None) for name in HOOKS)
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the model."""
        folder = str(self._folder)
        if self._before:
            _call(self._before, folder)
        self._model = _call(self._model_fn, folder)
        if self._after:
            _call(self._after, folder, self._model)

    def transform(self, body: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        """Return the response's body and content type. Raises what the script raises."""
        try:
            data = body.decode() if content_type in (JSON, CSV) else body
        except ValueError as error:
            raise Refused(400, f"the request can't be read: {error}") from None
        with self._lock:
            if self._transform:
                result = _call(self._transform, self._model, data, content_type, accept)
            else:
                read, predict, write = self._steps
                found = _call(predict, _call(read, data, content_type), self._model)
                result = _call(write, found, accept)
        if isinstance(result, tuple):
            result, accept = result
        if not isinstance(result, str | bytes | bytearray):
            result = json.dumps(result)  # As the model server does with what is neither text nor bytes.
        return (result.encode() if isinstance(result, str) else bytes(result)), accept

    def answer(self, body: bytes, content_type: str | None, accept: str | None) -> tuple[int, bytes, str]:
        """Return the status, the response's body and its content type; an error is a sentence."""
        accept = JSON if accept in (None, "", "*/*") else accept
        try:
            return 200, *self.transform(body, content_type or JSON, accept)
        except Exception as error:
            status = getattr(error, "status_code", 500)
            if status >= 500:
                traceback.print_exc()
            said = error.message if hasattr(error, "message") else f"{type(error).__name__}: {error}"
            return status, said.encode(), "text/plain"


def _call(function: Callable[..., Any], *given: Any) -> Any:
    """Call a handler; one that takes one argument more gets a context, which is None here."""
    wanted = len(inspect.signature(function).parameters)
    return function(*given, *([None] if wanted == len(given) + 1 else []))


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"the package has no code/{path.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # Dataclasses and pickles look for a module by its name.
    spec.loader.exec_module(module)
    return module


def model_fn(model_dir: str) -> Any:
    """Load model.pt, or the only .pt or .pth file, as TorchScript."""
    import torch

    files = sorted(name for name in os.listdir(model_dir) if name.endswith((".pt", ".pth")))
    files = ["model.pt"] if "model.pt" in files else files
    if len(files) != 1:
        raise ValueError(f"without model_fn a package needs exactly one .pt or .pth file, this has {files}")
    return torch.jit.load(os.path.join(model_dir, files[0]), map_location=_device())


def input_fn(body: str | bytes, content_type: str) -> Any:
    """Return the request as a tensor, or as tensors by name where it has several.

    JSON (values, {"inputs": values} or {"inputs": {NAME: values}}) and CSV become float32; NPY and NPZ
    keep their dtype.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (JSON, CSV, NPY, NPZ):
        raise Refused(415, f"the content type {content_type!r} is not supported")
    try:
        return _read(body.encode() if isinstance(body, str) else bytes(body), kind)
    except Refused:
        raise
    except Exception as error:  # Whatever a reader raises, it is the request that it can't read.
        raise Refused(400, f"the request can't be read: {reason(error)}") from None


def predict_fn(data: Any, model: Any) -> Any:
    """Return what the model makes of a tensor, or of tensors by name."""
    import torch

    device = _device()
    model = model.to(device)
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(data, Mapping):
                return model(**{name: value.to(device) for name, value in data.items()})
            return model(data.to(device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise Refused(400, f"the model doesn't take it: {reason(error)}") from None


def output_fn(prediction: Any, accept: str) -> tuple[str | bytes, str]:
    """Return the response in the first accepted type that can hold it, and that type."""
    for one in accept.replace(" ", "").split(","):
        kind = one.partition(";")[0].lower()
        if kind in (JSON, "*/*", ""):
            return json.dumps(listed(prediction)), JSON
        if kind in (CSV, NPY):
            return written(only(prediction, kind), kind), kind
    raise Refused(406, f"the response type {accept!r} is not supported")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read(data: bytes, kind: str) -> Any:
    if kind == JSON:
        value = json.loads(data)
        if isinstance(value, dict):
            if list(value) not in (["inputs"], ["instances"]):
                raise Refused(400, "the request has neither 'inputs' nor 'instances' alone")
            (value,) = value.values()
        if isinstance(value, dict):
            return _alone({name: _floats(one) for name, one in value.items()})
        return _floats(value)
    if kind == CSV:
        return _floats(rows_of(data).squeeze())  # The toolkit's own gives a line alone one axis.
    return _alone({name: _tensor(array) for name, array in arrays_of(data).items()})


def rows_of(data: bytes) -> Any:
    """Return what CSV says, a row for each line."""
    import numpy as np

    # ASCII alone: numpy's reader may end the process on other characters.
    text = data.decode("utf-8-sig").encode("ascii").decode()
    return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2) if text.strip() else np.empty((0, 0))


def arrays_of(data: bytes) -> dict[str | None, Any]:
    """Return the arrays of NPZ by their names, that of NPY under None."""
    import numpy as np

    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {None: loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def _alone(tensors: dict[Any, Any]) -> Any:
    if not tensors:
        raise Refused(400, "the request has no inputs")
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def _floats(values: Any) -> Any:
    import numpy as np

    array = np.asarray(values)
    if not array.size:
        raise Refused(400, "the request has no values")
    if array.dtype.kind not in "iuf":
        raise Refused(400, "the request's values are not numbers alone")
    return _tensor(array.astype(np.float32))


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)


def _numbers(tensor: Any) -> Any:
    """Return a tensor's array, which has no bfloat16."""
    import torch

    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def listed(value: Any) -> Any:
    """Return nested lists; JSON has no number for what isn't finite: null."""
    import numpy as np

    if isinstance(value, Mapping):
        return {name: listed(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [listed(one) for one in value]
    array = _numbers(value) if hasattr(value, "detach") else value
    if not hasattr(array, "tolist"):
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array, None)
    return array.tolist()


def only(prediction: Any, kind: str) -> Any:
    """Return the one array that was predicted. Raises Refused for several, which the type can't hold."""
    import numpy as np

    while isinstance(prediction, Mapping | tuple):
        values = list(prediction.values() if isinstance(prediction, Mapping) else prediction)
        if len(values) != 1:
            raise Refused(406, f"{kind} holds one array, the model has {len(values)} outputs: use JSON")
        (prediction,) = values
    return _numbers(prediction) if hasattr(prediction, "detach") else np.asarray(prediction)


def written(array: Any, kind: str) -> str | bytes:
    """Return an array as CSV, a line for each sample, or as NPY."""
    import numpy as np

    if kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    lines = io.StringIO()
    array = np.atleast_1d(array)
    np.savetxt(lines, array.reshape(len(array), -1), delimiter=",", fmt="%.9g")
    return lines.getvalue()


def reason(error: Exception) -> str:
    """Return the line of an error that says why: TorchScript's is the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]
