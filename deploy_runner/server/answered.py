"""Inference from raw input to an answer, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .codecs import JSON, TYPES, kind_of
from .ports import Arrays, Ports, samples_first
from .problems import (
    BadRequest,
    Invalid,
    ModelError,
    Problem,
    QueueFull,
    Refused,
    TooLarge,
    UnfitArtifact,
    Unknown,
)
from .raw.problems import BadInput
from .raw.rawio import RawIo
from .raw.requests import Given, of_body, of_json, of_parts
from .raw.spec import has_code, read
from .reasons import first_line

__all__ = ["FORM", "Readers", "answers", "open_io", "placed"]

FORM = "multipart/form-data"
_MOST_PARTS = 1024
_KINDS: Mapping[int, type[Refused]] = {400: BadRequest, 413: TooLarge, 422: Invalid}


def open_io(folder: Path, *, trust: bool) -> RawIo:
    """Open an io artifact. Raises UnfitArtifact where that is impossible, or needs trust."""
    try:
        spec = read(folder)
        if not trust and has_code(spec):
            raise UnfitArtifact("the io artifact has code of its own", fix="if you trust it: --trust")
        return RawIo(folder, spec)
    except UnfitArtifact:
        raise
    except ModuleNotFoundError as error:
        raise UnfitArtifact(f"the io artifact needs {error.name}, which is not installed",
                            fix="pip install 'deploy-runner[io]'") from None  # fmt: skip
    except Exception as error:
        raise UnfitArtifact(f"the io artifact can't be opened: {first_line(error)}") from error


class Readers:
    """Threads that read raw input; at most `most` requests wait for them."""

    def __init__(self, threads: int, most: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="raw")
        self._most = most
        self._waiting = 0

    async def read(
        self, io: RawIo, body: bytes, content_type: str, value: Any
    ) -> tuple[Given, Arrays] | None:
        """Return the samples of a request and the model's inputs; None where it has tensors.

        `value` is what a body of JSON holds. Raises Refused.
        """
        kind = kind_of(content_type)
        if kind == JSON:
            if isinstance(value, dict) and isinstance(value.get("inputs"), dict):
                return None
            return await self.arrays(io, partial(of_json, value, io.kinds))
        if kind == FORM:
            return await self.arrays(io, partial(_of_form, body, content_type, io))
        found = await self.arrays(io, partial(of_body, body, content_type, io.kinds))
        if found is None and kind not in TYPES:
            types = ", ".join([JSON, FORM, *io.kinds.types, *TYPES[1:]])
            said = f"the content type {kind!r} is not supported, use {types}"
            raise Unknown(Problem(("header", "content-type"), said))
        return found

    async def arrays(self, io: RawIo, given_by: Callable[[], Given | None]) -> tuple[Given, Arrays] | None:
        """Return the samples that a function gives, and the model's inputs of them. Raises Refused."""
        if self._waiting >= self._most:
            raise QueueFull(Problem(("server",), f"{self._waiting} requests are waiting to be read"))
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, _read, io, given_by)
        except Refused:
            raise
        except BadInput as error:
            raise _KINDS[error.status](Problem(("body",), str(error))) from None
        except Exception as error:
            raise ModelError(Problem(("body",), f"the input can't be read: {first_line(error)}")) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _read(io: RawIo, given_by: Callable[[], Given | None]) -> tuple[Given, Arrays] | None:
    given = given_by()
    return None if given is None else (given, io.arrays(given.samples))


def _of_form(body: bytes, content_type: str, io: RawIo) -> Given:
    from python_multipart import exceptions, multipart

    parts: list[tuple[str, str, bytes]] = []
    current: dict[str, Any] = {}
    headers: dict[str, str] = {}
    named: list[bytes] = [b"", b""]

    def begin() -> None:
        if len(parts) >= _MOST_PARTS:
            raise BadInput(f"the form has more than {_MOST_PARTS} parts", too_large=True)
        headers.clear()
        current["data"] = []

    def header_end() -> None:
        headers[named[0].decode("latin-1").lower()] = named[1].decode("latin-1")
        named[:] = [b"", b""]

    def add(place: int, data: bytes, start: int, end: int) -> None:
        named[place] += data[start:end]

    def end() -> None:
        _, options = multipart.parse_options_header(headers.get("content-disposition", ""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        parts.append((name, headers.get("content-type", ""), b"".join(current["data"])))

    try:
        _, options = multipart.parse_options_header(content_type)
        parser = multipart.MultipartParser(options[b"boundary"], {
            "on_part_begin": begin, "on_part_end": end, "on_header_end": header_end,
            "on_header_field": partial(add, 0), "on_header_value": partial(add, 1),
            "on_part_data": lambda data, start, stop: current["data"].append(data[start:stop]),
        })  # fmt: skip
        parser.write(body)
        parser.finalize()
    except (KeyError, exceptions.FormParserError) as error:
        said = "it names no boundary" if isinstance(error, KeyError) else first_line(error)
        raise BadInput(f"the body is not a form: {said}") from None
    return of_parts(parts, io.kinds)


def placed(arrays: Arrays, inputs: Ports) -> Arrays:
    """Return the model's inputs with their samples where it has them. Raises Invalid."""
    found = {}
    for port in inputs:
        array = arrays[port.name]
        if port.batch is not None:
            found[port.name] = np.ascontiguousarray(np.moveaxis(array, 0, port.batch))
        elif len(array) != 1:
            raise Invalid(
                Problem(("body",), f"the model takes one sample at a time, {len(array)} were given")
            )
        else:
            found[port.name] = array if array.ndim == len(port.shape) else array[0]
    return found


def answers(io: RawIo, outputs: Arrays, inputs: Arrays, ports: Ports) -> Sequence[Any]:
    """Return the answer of each sample, of outputs as the model has them. Raises ModelError."""
    try:
        first = {p.name: _samples(outputs[p.name], p.batch is None) for p in ports}
        first = {p.name: samples_first(first[p.name], p) for p in ports}
        return io.answers(first, inputs)
    except Exception as error:
        raise ModelError(Problem(("model",), f"the answer can't be made: {first_line(error)}")) from error


def _samples(array: Any, shared: bool) -> Any:
    return array[None] if shared and (array.ndim == 0 or len(array) != 1) else array
