"""Requests of /predict and /invocations to arrays, and arrays to responses: JSON, CSV, NPY, NPZ.

The forms are those of SageMaker's containers: {"inputs": {NAME: values}}, {"instances": [sample, …]} or
a bare list; CSV with one sample a line, and NPY, for models with one input. Lists and lines of samples
have them first, wherever the model has its batch; arrays by name have the model's own shape.
"""

from __future__ import annotations

import codecs
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from .ports import Arrays, Ports, as_array, samples_first
from .problems import BadRequest, Invalid, Problem, TooLarge, Unknown, Unreadable
from .reasons import first_line

__all__ = [
    "CSV",
    "JSON",
    "NPY",
    "NPZ",
    "TYPES",
    "decode",
    "encode",
    "kind_of",
    "need_json",
    "parse_json",
    "to_json",
    "tutorial",
]

JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"
TYPES = (JSON, CSV, NPY, NPZ)
_DEEPEST = 3
"""So many objects within objects hold values: {"inputs": {NAME: values}}."""


@lru_cache(maxsize=256)
def kind_of(content_type: str) -> str:
    """Return a content type without its parameters: JSON where none is named."""
    return content_type.partition(";")[0].strip().lower() or JSON


def decode(body: bytes, content_type: str, ports: Ports, max_bytes: int, value: Any = None) -> Arrays:
    """Return the arrays by input name, each of its input's dtype. Raises Refused.

    `value` is what a body of JSON holds, where it has been parsed.
    """
    kind = kind_of(content_type)
    if kind == JSON:
        value = parse_json(body) if value is None else value
        refuse_mixed(body, value)
        return _from_json(value, ports)
    if kind == CSV:
        return _only(_from_csv(body), ports, finite=True, listed=True)
    if kind == NPY:
        return _only(_from_npy(body, "the body"), ports, finite=False)
    if kind == NPZ:
        return _from_npz(body, ports, max_bytes)
    said = f"the content type {kind!r} is not supported, use {', '.join(TYPES)}"
    raise Unknown(Problem(("header", "content-type"), said))


def tutorial(body: bytes, value: Any, ports: Ports) -> Arrays | None:
    """Return the only input of {"data": values}, which a body holds; None for another. Raises Refused."""
    if not isinstance(value, dict) or list(value) != ["data"]:
        return None
    refuse_mixed(body, value)
    values = value["data"]
    flat = isinstance(values, list) and not any(isinstance(one, list) for one in values[:1])
    return _only(
        [values] if flat and len(ports) == 1 and ports[0].sample else values, ports, finite=True, listed=True
    )


def parse_json(body: bytes) -> Any:
    """Parse strict JSON. Raises BadRequest."""
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise BadRequest(Problem(("body",), f"the body is not JSON: {first_line(error)}")) from None


def refuse_mixed(body: bytes, value: Any) -> None:
    """Raise Invalid for lists with numbers and truth values, which numpy takes for numbers.

    Lists within lists are one, and so is what samples have by the same name.
    """
    if b"true" not in body and b"false" not in body:
        return
    kinds: dict[tuple[str, ...], set[type]] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, list):
            kinds.setdefault(place, set()).update(map(type, one))
            waiting += [(place, inner) for inner in one if isinstance(inner, (list, dict))]
        elif isinstance(one, dict) and len(place) < _DEEPEST:
            waiting += [((*place, name), inner) for name, inner in one.items()]
        else:
            kinds.setdefault(place, set()).add(type(one))
    if any(bool in found and found & {int, float} for found in kinds.values()):
        raise Invalid(Problem(("body",), "a list has numbers, and true or false among them"))


def _from_json(value: Any, ports: Ports) -> Arrays:
    if isinstance(value, list):
        return _instances(value, ports, ("body",))
    if not isinstance(value, dict):
        raise Invalid(Problem(("body",), 'the body is neither {"inputs": …}, {"instances": […]} nor a list'))
    extra = [key for key in value if key not in ("inputs", "instances")]
    if extra or len(value) != 1:
        said = f"unknown key {extra[0]!r}" if extra else "exactly one of the two is required"
        raise Invalid(Problem(("body",), f'the body is {{"inputs": {{NAME: values}}}} or '
                                         f'{{"instances": [sample, …]}}: {said}'))  # fmt: skip
    if "instances" in value:
        return _instances(value["instances"], ports, ("body", "instances"))
    named = value["inputs"]
    if not isinstance(named, dict):
        return _only(named, ports, finite=True)
    return _named(named, ports)


def _named(values: Mapping[str, Any], ports: Ports, *, listed: bool = False) -> Arrays:
    known = {port.name: port for port in ports}
    problems: list[Problem] = []
    arrays: Arrays = {}
    for name, value in values.items():
        if name not in known:
            problems.append(
                Problem(("body", "inputs", name), f"unknown input {name!r}, the inputs are {ports}")
            )
            continue
        try:
            arrays[name] = as_array(value, known[name], ("body", "inputs", name), finite=True, listed=listed)
        except Invalid as refused:
            problems += refused.problems
    if problems:
        raise Invalid(*problems)
    return arrays


def _instances(samples: Any, ports: Ports, loc: tuple[str, ...]) -> Arrays:
    if not isinstance(samples, list) or not samples:
        said = "the batch is empty" if samples == [] else "a list of samples is required"
        raise Invalid(Problem(loc, said))
    if not isinstance(samples[0], dict):
        return _only(samples, ports, finite=True, listed=True)
    if not all(isinstance(s, dict) and s.keys() == samples[0].keys() for s in samples):
        raise Invalid(Problem(loc, "the samples have different inputs"))
    return _named({n: [sample[n] for sample in samples] for n in samples[0]}, ports, listed=True)


def _only(value: Any, ports: Ports, *, finite: bool, listed: bool = False) -> Arrays:
    if len(ports) != 1:
        said = f"the model has {len(ports)} inputs, which must be given by name: {ports}"
        raise Invalid(Problem(("body",), said))
    loc = ("body", "inputs", ports[0].name)
    return {ports[0].name: as_array(value, ports[0], loc, finite=finite, listed=listed)}


def _from_csv(body: bytes) -> np.ndarray[Any, Any]:
    try:
        # ASCII alone: numpy's reader of whole numbers ends the process on other characters.
        text = body.removeprefix(codecs.BOM_UTF8).decode("ascii")
        rows = [line for line in text.splitlines() if line.strip()]
        integers = not any(character in text for character in ".eEnN")
        return np.loadtxt(rows, delimiter=",", ndmin=2, dtype=np.int64 if integers else np.float64)
    except (ValueError, OverflowError) as error:
        raise BadRequest(Problem(("body",), f"the body is not CSV of numbers: {first_line(error)}")) from None


def _from_npy(data: bytes, what: str) -> np.ndarray[Any, Any]:
    """Read an array without trusting its header: its size has to be there, and objects are refused."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        count = math.prod(shape)
        if dtype.hasobject or dtype.kind not in "biufc" or any(size < 0 for size in shape):
            raise ValueError(f"it contains {dtype}, not numbers")
        if count * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"the shape {shape} in its header doesn't match its size")
        values = np.frombuffer(data, dtype, count, file.tell())
        return values.reshape(shape, order="F" if fortran else "C").astype(
            dtype.newbyteorder("="), copy=False
        )
    except Exception as error:  # Its header is parsed as Python: tokenize and ast have errors of their own.
        raise BadRequest(Problem(("body",), f"{what} is not an .npy array: {first_line(error)}")) from None


def _from_npz(body: bytes, ports: Ports, max_bytes: int) -> Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if sum(info.file_size for info in members.values()) > max_bytes:
                said = f"the archive unpacks to more than {max_bytes} bytes"
                raise TooLarge(Problem(("body",), said))
            raw = {name: archive.read(info) for name, info in members.items()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BadRequest(Problem(("body",), f"the body is not an .npz: {first_line(error)}")) from None
    found = {name: _from_npy(data, f"the member {name!r}") for name, data in raw.items()}
    known = {port.name: port for port in ports}
    return {
        name: as_array(array, known[name], ("body", "inputs", name), finite=False) if name in known else array
        for name, array in found.items()
    }


def to_json(value: Any) -> bytes:
    """Return JSON; numbers that aren't finite become null, which is all that JSON has for them."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def need_json(accept: str) -> None:
    """Raise Unreadable where JSON is not accepted."""
    if not any(kind in (*_ANY, JSON) for kind in _accepted(accept)):
        raise Unreadable(Problem(("header", "accept"), f"answers are {JSON}, {accept!r} is not supported"))


def encode(outputs: Arrays, accept: str, ports: Ports) -> tuple[bytes, str]:
    """Return the response's body and its content type. Raises Unreadable.

    CSV and NPY hold one array, so only a model with one output is answered in them.
    """
    several = []
    for kind in _accepted(accept):
        if kind in (*_ANY, JSON):
            return to_json({"outputs": outputs}), JSON
        if kind in (CSV, NPY) and len(ports) > 1:
            several.append(kind)
        elif kind == CSV:
            return _csv(samples_first(outputs[ports[0].name], ports[0])), kind
        elif kind in _WRITERS:
            return _WRITERS[kind](outputs), kind
    if several:
        said = f"{several[0]} holds one array, the model has {len(ports)} outputs: use {JSON} or {NPZ}"
        raise Unreadable(Problem(("header", "accept"), said))
    said = f"the response type {accept!r} is not supported, use {', '.join(TYPES)}"
    raise Unreadable(Problem(("header", "accept"), said))


_ANY = ("", "*/*", "application/*")


@lru_cache(maxsize=256)
def _accepted(accept: str) -> tuple[str, ...]:
    """Return the content types that are accepted, the most wanted first: of a weight q, as they are listed.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-accept
    """
    weighed = []
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = next((p.partition("=")[2] for p in parameters if p.startswith("q=")), "1")
        try:
            q = float(weight)
        except ValueError:
            q = 1.0
        if q > 0:
            weighed.append((-q, kind))
    return tuple(kind for _, kind in sorted(weighed, key=lambda one: one[0]))


def _csv(first: np.ndarray[Any, Any]) -> bytes:
    buffer = io.StringIO()
    rows = first.reshape(len(first) if first.ndim else 1, -1)
    exact = "%.17g" if first.dtype == np.float64 else "%.9g"
    np.savetxt(buffer, rows, delimiter=",", fmt=exact if first.dtype.kind == "f" else "%d")
    return buffer.getvalue().encode()


def _npy(outputs: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, next(iter(outputs.values())), allow_pickle=False)
    return buffer.getvalue()


def _npz(outputs: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **outputs)
    return buffer.getvalue()


_WRITERS: Mapping[str, Callable[[Arrays], bytes]] = {NPY: _npy, NPZ: _npz}
