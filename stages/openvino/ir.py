"""OpenVINO's intermediate representation (IR), model.xml and model.bin: written, found, run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError, first_line

from ..model.compare import Model, taken

FILE_NAME = "model.xml"

_NAME = re.compile(r'(<layer id="\d+" name=")([^"]*)"')
_NUMBERED = re.compile(r"[A-Z]\w*?_\d+")


def why(error: Exception) -> str:
    """Return what an exception of OpenVINO says after the places in its source: the last line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return first_line(lines[-1] if lines else error)


def read(folder: Path) -> Any:
    """Return the model of a folder. Raises StageError where it isn't one."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise StageError(f"{folder.name} contains no {FILE_NAME}", fix="use the output of openvino.convert")
    import openvino

    try:
        return openvino.Core().read_model(file)
    except Exception as error:
        raise StageError(f"OpenVINO can't read the model: {why(error)}") from error


def save(model: Any, folder: Path, known: Collection[str], *, half: bool = False) -> None:
    """Write a model with bytes that depend on it alone; `half` stores weights as float16.

    OpenVINO numbers what it adds by a counter of the process. Names that are `known`, those of the model
    that it was made of, stay.
    """
    import openvino

    folder.mkdir(exist_ok=True)
    file = folder / FILE_NAME
    openvino.save_model(model, file, compress_to_fp16=half)
    numbers, numbered = itertools.count(), dict[str, str]()

    def renamed(layer: re.Match[str]) -> str:
        start, name = layer.groups()
        found = _NUMBERED.match(name)
        if found is None or name in known or found[0] in known:
            return layer[0]
        kind = found[0].rpartition("_")[0]
        if found[0] not in numbered:
            free = (f"{kind}_{number}" for number in numbers)
            numbered[found[0]] = next(name for name in free if name not in known)
        return f'{start}{numbered[found[0]]}{name[found.end() :]}"'

    file.write_text(_NAME.sub(renamed, file.read_text("utf-8")), "utf-8")


def names(model: Any) -> list[str]:
    """Return the names of a model's layers."""
    return [layer.get_friendly_name() for layer in model.get_ordered_ops()]


def compiled(model: Any, *, threads: int, precision: str = "f32") -> Any:
    """Return a model ready to run on the CPU, in float32 where the device would choose bfloat16.

    An empty `precision` is the device's choice. Raises StageError where OpenVINO can't compile it.
    """
    import openvino

    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    try:
        return openvino.Core().compile_model(model, "CPU", config)
    except Exception as error:
        raise StageError(f"OpenVINO can't compile the model: {why(error)}") from error


def runner(folder: Path, *, threads: int, outputs: Sequence[str] | None = None) -> Model:
    """Return the model of a folder as a function of arrays by name; `outputs` are those to return."""
    return running(compiled(read(folder), threads=threads), outputs)


def _name(port: Any, known: Collection[str]) -> str:
    """Return a port's name, that of several which is `known`: what a cast leaves unchanged has both names."""
    found: list[str] = sorted(port.names)
    return next((name for name in found if name in known), found[0])


def running(opened: Any, outputs: Sequence[str] | None = None) -> Model:
    """Return a compiled model as a function of arrays by name."""
    known = [name for port in opened.outputs for name in sorted(port.names)]
    wanted = known if outputs is None else [name for name in outputs if name in known]

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        feed = taken(arrays, [_name(port, arrays) for port in opened.inputs])
        try:
            results = opened(feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
            said = f"OpenVINO can't run inputs of shape {shapes}: {why(error)}"
            raise StageError(said, fix="use arrays with the model's shapes and types") from error
        return {name: results[name] for name in wanted}

    return run
