"""A model that is ready to serve: loaded, warmed, tried on its reference cases, its batching decided."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .answered import open_io
from .artifact import Artifact, find, fingerprint
from .options import Settings
from .placement import Placement
from .ports import Arrays, Port, Ports, Sizes, joined, samples_first
from .problems import Refused, UnfitArtifact
from .programs import Program, open_program
from .raw.rawio import RawIo

__all__ = ["Model", "load"]

_SIZES = (4, 16, 1)
"""Sizes that are tried for axes of any size, other than the first, where no reference case says one."""
_LONG = (256, 16_000)
"""Those for a single such axis, too: a second of sound has so many samples."""
_ROUNDS = 3
_MOST_WORKERS = 8
"""So many by default: each takes some 40 MB beside the weights, which they share."""
_SAMPLE_S = 0.1
"""A sample that takes more CPU is computed by all cores together."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model and what was found out about it.

    `joins` says that requests may be run as one batch of at most `max_batch` samples, `why_alone` why not.
    `example` has one sample. `cpu_s` has the CPU seconds of batches by the number of their values.
    """

    artifact: Artifact
    program: Program
    example: Arrays
    joins: bool
    why_alone: str
    cpu_s: Mapping[int, float]
    max_batch: int
    workers: int
    threads: int
    scratch: ExitStack
    fingerprint: tuple[object, ...]
    io: RawIo | None

    @property
    def inputs(self) -> Ports:
        """Return the inputs."""
        return self.program.inputs

    @property
    def outputs(self) -> Ports:
        """Return the outputs."""
        return self.program.outputs


def load(settings: Settings, cores: int, workers: int = 0) -> Model:
    """Load the artifact for one of so many workers. Raises UnfitArtifact; then nothing of it is kept.

    Where `workers` is 0 their number is decided, too; if it is more than one, the program computes with one
    thread, whatever `threads` says: it has started none, and can be forked.
    """
    scratch = ExitStack()
    try:
        reference = Path(settings.reference) if settings.reference else None
        io = Path(settings.io) if settings.io else None
        place = Path(settings.artifact)
        state = fingerprint(place)
        artifact = find(place, partial(_folder, scratch), reference=reference, io=io, trust=settings.trust)
        program = open_program(artifact, 1, settings.device)
        example = _example(artifact, program)
        _try_cases(artifact, program, settings.atol, settings.rtol)
        max_batch = min([settings.max_batch, *_most_samples(program.inputs)])
        why = _why_alone(artifact, program, example, max_batch)
        values = sum(array.size for array in example.values())
        cpu_s = {values * rows: _cpu_s(program, example, rows) for rows in {1, 1 if why else max_batch}}
        small = Placement(settings.run_in, cpu_s, print).in_loop(max(cpu_s))
        decided = workers or _workers(settings, artifact, min(cpu_s.values()), cores)
        share = max(1, cores // decided)
        threads = min(settings.threads or (1 if small else share), share)
        if threads > 1 and (workers or decided == 1):
            program = open_program(artifact, threads, settings.device)
            _cpu_s(program, example, 1)
        return Model(
            artifact, program, example, not why, why, cpu_s, max_batch, decided, threads, scratch, state,
            open_io(artifact.io, trust=settings.trust) if artifact.io else None,
        )  # fmt: skip
    except Refused as refused:
        scratch.close()
        raise UnfitArtifact(f"the model failed to run: {refused}") from None
    except UnfitArtifact:
        scratch.close()
        raise


def _workers(settings: Settings, artifact: Artifact, sample_s: float, cores: int) -> int:
    """Return how many processes answer: as is said, at most one for each core, else by the model.

    What runs on one core in a tenth of a second is run by workers with a core each, which wait for nobody.
    """
    if settings.server == "flask" or settings.device != "cpu" or artifact.format != "onnx":
        return 1
    most = max(1, cores // (settings.threads or 1))
    return min(settings.workers or (_MOST_WORKERS if sample_s < _SAMPLE_S else 1), most)


def _folder(scratch: ExitStack) -> Path:
    """Return a new folder, which goes when the model does."""
    return Path(scratch.enter_context(TemporaryDirectory(prefix="deploy-runner-serve-")))


def _example(artifact: Artifact, program: Program) -> Arrays:
    """Return inputs of one sample that the model can run: a reference case's, or made-up ones."""
    for case in artifact.cases:
        if all(name in case.inputs for name in program.inputs.names):
            return {p.name: a if p.batch is None else np.take(a, range(_fewest(p)), axis=p.batch, mode="wrap")
                    for p in program.inputs for a in [case.inputs[p.name]]}  # fmt: skip
    refused: Refused | None = None
    single = all(sum(size < 0 for size in port.sample) <= 1 for port in program.inputs)
    for size in (*_SIZES, *(_LONG if single else ())):
        example = _made_up(program.inputs, size)
        try:
            program.run(example)
        except Refused as error:
            refused = refused or error
        else:
            return example
    assert refused is not None
    raise refused


def _fewest(port: Port) -> int:
    """Return the number of samples of the smallest batch."""
    return port.sizes[port.batch].nearest(1) if port.sizes and port.batch is not None else 1


def _most_samples(ports: Ports) -> list[int]:
    """Return the largest batch of each input that has one."""
    limits = [p.sizes[p.batch].max for p in ports if p.sizes and p.batch is not None]
    return [size for size in limits if size is not None]


def _made_up(ports: Ports, size: int) -> Arrays:
    generator = np.random.default_rng(0)
    arrays = {}
    for port in ports:
        free = port.sizes or (Sizes(),) * len(port.shape)
        wanted = [1 if i == port.batch else size for i in range(len(port.shape))]
        shape = [n.nearest(w) if s < 0 else s for s, w, n in zip(port.shape, wanted, free, strict=True)]
        floats = np.dtype(port.dtype).kind == "f"
        values = generator.random(shape).round(3) if floats else generator.integers(0, 2, shape)
        arrays[port.name] = np.asarray(values, port.dtype)
    return arrays


def _try_cases(artifact: Artifact, program: Program, atol: float | None, rtol: float | None) -> None:
    """Raise UnfitArtifact where the model answers a reference case beyond its tolerance."""
    most = _largest(artifact)
    for index, case in enumerate(artifact.cases):
        found = program.run({name: case.inputs[name] for name in program.inputs.names if name in case.inputs})
        for name, expected in case.outputs.items():
            if name not in found:
                raise UnfitArtifact(f"the model has no output {name!r}, which the reference cases have")
            if found[name].shape != expected.shape:
                raise UnfitArtifact(f"reference case {index}: output {name!r} has the shape "
                                    f"{list(found[name].shape)}, not {list(expected.shape)}")  # fmt: skip
            limit, allowed = artifact.of_largest * most[name], "the limit of {:.3g}"
            if atol is not None or rtol is not None:
                limit, allowed = atol or 0.0, f"atol {atol or 0:g} + rtol {rtol or 0:g} allow"
            if not np.allclose(found[name], expected, rtol or 0.0, limit, equal_nan=True):
                worst = _worst(found[name], expected)
                raise UnfitArtifact(f"reference case {index}: output {name!r} differs by up to {worst:.3g}, "
                                    f"more than {allowed.format(limit)}")  # fmt: skip


def _largest(artifact: Artifact) -> dict[str, float]:
    """Return each output's largest finite value in the reference cases."""
    most: dict[str, float] = {}
    for case in artifact.cases:
        for name, array in case.outputs.items():
            most[name] = max(most.get(name, 0.0), _size(array))
    return most


def _size(array: np.ndarray[Any, Any]) -> float:
    sizes = np.abs(array.astype(np.float64))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _worst(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Return the largest difference: infinity where one is not finite and the other something else."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not (finite | (a == b) | (np.isnan(a) & np.isnan(b))).all():
        return math.inf
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def _why_alone(artifact: Artifact, program: Program, example: Arrays, max_batch: int) -> str:
    """Return why requests can't be run as one batch, or nothing.

    Found out, not assumed: two samples are run alone and together, and have to be answered alike.
    """
    if max_batch == 1:
        return "max_batch is 1"
    if not artifact.joinable:
        return "the model quantizes dynamically by the values of the whole batch (DynamicQuantizeLinear)"
    if not any(port.batch is not None for port in program.inputs):
        return "the model has no dynamic batch axis"
    for port in program.outputs:
        if port.batch is None:
            return f"output {port.name!r} has no batch axis"
    other = {p.name: _another(example[p.name], p) for p in program.inputs}
    try:
        alone = [program.run(sample) for sample in (example, other)]
        both = program.run(joined((example, other), program.inputs))
    except Refused as refused:
        return f"the model can't run a batch of two samples: {refused}"
    return _difference(alone, both, program.outputs)


def _another(array: np.ndarray[Any, Any], port: Port) -> np.ndarray[Any, Any]:
    """Return another sample; of what all samples share, the same."""
    if port.batch is None:
        return array
    return array * array.dtype.type(4) if array.dtype.kind == "f" else np.roll(array, 1)


def _difference(alone: Sequence[Arrays], both: Arrays, outputs: Ports) -> str:
    for port in outputs:
        name, array = port.name, samples_first(both[port.name], port)
        if array.shape[:1] != (2,):
            return f"output {name!r} has the shape {list(both[name].shape)} for two samples"
        for index, single in enumerate(alone):
            one, within = samples_first(single[name], port)[0], array[index]
            scale = _size(array) if one.dtype.kind == "f" else 0.0
            if not np.allclose(one, within, rtol=0, atol=1e-3 * scale, equal_nan=True):
                return f"output {name!r} of a sample depends on the other samples of its batch"
    return ""


def _cpu_s(program: Program, example: Arrays, rows: int) -> float:
    """Return the least CPU time of a few runs of so many samples, in seconds; this also warms the model."""
    batch = joined([example] * rows, program.inputs) if rows > 1 else example
    shortest = math.inf
    for _ in range(_ROUNDS):
        started_s = time.thread_time()
        program.run(batch)
        shortest = min(shortest, time.thread_time() - started_s)
    return shortest


def describe(model: Model) -> dict[str, Any]:
    """Return what a log line says of a model."""
    return {
        "digest": model.artifact.digest,
        "format": model.artifact.format,
        "batching": model.joins,
        "workers": model.workers,
        "threads": model.threads,
        "cases": len(model.artifact.cases),
    } | ({"why_alone": model.why_alone} if model.why_alone else {})
