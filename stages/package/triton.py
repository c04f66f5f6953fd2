"""`package.triton`: an ONNX model as a model repository of the Triton Inference Server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..model import bundles, protos
from ..model.compare import Model, compare, gate
from ..model.opened_io import read_spec
from . import packed, triton_config

_VERSION = "1"
_BATCH = 32
_LABELS = "labels.txt"


class PackageTriton(Stage):
    """Write an ONNX model as a model repository of Triton: `NAME/config.pbtxt` and `NAME/1/model.onnx`.

    The configuration has the names, types and dimensions of the file itself. The packed file is run
    on the reference cases: its inputs and outputs must fit the configuration and equal the model's
    own answers, also for a sample in the largest batch.
    """

    uses = "package.triton"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnxruntime", "onnx")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(StageParams):
        """How Triton serves it."""

        name: str = Field(
            "model", pattern=r"^[A-Za-z0-9][\w.-]*$", description="the model's name, and its folder's"
        )
        max_batch: int | None = Field(
            None,
            ge=0,
            description="the largest batch; 0: Triton makes none, and takes every request as it comes "
            f"(default: {_BATCH} if all inputs and outputs begin with a free axis of samples, else 0)",
        )
        queue_us: int | None = Field(
            None,
            ge=0,
            description="join requests into batches, each waiting so many microseconds at most "
            "(default: they are not joined)",
        )
        atol: float | None = Field(
            None,
            ge=0,
            description="absolute tolerance of a sample's answer in a batch (default: by rounding)",
        )
        rtol: float | None = Field(None, ge=0, description="relative tolerance")

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(description="an ONNX artifact")
        reference: Folder | None = Field(
            None, description="the bundle of model.prepare, whose cases are tried"
        )
        io: Folder | None = Field(None, description="the output of model.io, for the names of the classes")

    class Outputs(StageOutputs):
        """The repository."""

        repository: Folder = Output("models", "NAME/config.pbtxt and NAME/1/model.onnx")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Describe, copy, try."""
        file = protos.program_file(inputs.model)
        if file.is_file() and file.suffix != ".onnx":
            raise StageError(f"{file.name} is no ONNX model", fix="use the output `model` of an onnx stage")
        triton_config.refuse_other_than_tensors(protos.load_proto(inputs.model, weights=False))
        files, described = packed.model_files(inputs.model, inputs.reference)
        ports = (described["inputs"], described["outputs"])
        batch = _largest_batch(params, ports)
        labels = _labels(inputs.io)
        folder = outputs.repository / params.name
        (folder / _VERSION).mkdir(parents=True)
        for name, path in files.items():
            shutil.copyfile(path, folder / _VERSION / name)
        text = triton_config.text(
            params.name, ports, batch, queue_us=params.queue_us,
            labels=dict.fromkeys(labels, _LABELS),
        )  # fmt: skip
        (folder / "config.pbtxt").write_text(text, "utf-8", newline="\n")
        for lines in labels.values():
            (folder / _LABELS).write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
        _try(ctx, params, inputs, folder / _VERSION, ports, batch)
        ctx.figure("bytes", sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))
        ctx.figure("max_batch_size", batch)


def _largest_batch(params: PackageTriton.Params, ports: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Return max_batch_size. Raises StageError for one that the model's shapes don't allow."""
    unfit = next(
        (port for port in (*ports[0], *ports[1]) if port["batch"] != 0 or len(port["shape"]) < 2), None
    )
    batch = params.max_batch if params.max_batch is not None else 0 if unfit else _BATCH
    if batch and unfit:
        raise StageError(
            f"max_batch is {batch}, but {unfit['name']!r} has the shape {unfit['shape']}: Triton batches "
            "only what begins with an axis of samples of any size and has another axis",
            fix="set max_batch: 0, or export the model with a dynamic first axis",
        )
    if params.queue_us is not None and not batch:
        raise StageError("queue_us needs a model that Triton may batch", fix="leave queue_us out")
    return batch


def _labels(io: Path | None) -> dict[str, list[str]]:
    """Return the names of the classes by the output that has them."""
    answer = read_spec(io)["answer"] if io is not None else {}
    if answer.get("kind") not in ("classes", "labels") or not answer.get("labels"):
        return {}
    lines = [str(label) for label in answer["labels"]]
    if broken := [line for line in lines if not line.strip() or len(line.splitlines()) != 1]:
        raise StageError(f"the label {broken[0]!r} isn't one line of text, as {_LABELS} needs")
    return {answer["output"]: lines}


def _try(
    ctx: Context, params: PackageTriton.Params, inputs: PackageTriton.Inputs, folder: Path,
    ports: Sequence[Sequence[Mapping[str, Any]]], batch: int,
) -> None:  # fmt: skip
    """Run the packed file on the reference cases, and compare it with the model that was given."""
    from ..verify import runtime

    run = protos.runner(folder, threads=ctx.threads)
    if inputs.reference is None:
        return
    bundle = bundles.load_bundle(inputs.reference)
    original = runtime.open_model(ctx, inputs.model, bundle)
    cases = [replace(case, outputs=original(case.inputs), allowed={}) for case in bundle.cases]
    if batch:
        cases.append(_joined(bundle.cases[0], original, batch))

    def ask(arrays: Mapping[str, Any]) -> dict[str, Any]:
        found = run(arrays)
        for group, given in zip(ports, (arrays, found), strict=True):
            _refuse_unfit(group, given, batched=batch > 0)
        return dict(found)

    parity = compare(cases, ask, atol=params.atol, rtol=params.rtol)
    gate(ctx, parity, atol=params.atol, rtol=params.rtol)


def _joined(case: bundles.Case, model: Model, batch: int) -> bundles.Case:
    """Return one sample so often as a batch has room, with what the model answers to it alone."""
    import numpy as np

    alone = {name: array[:1] for name, array in case.inputs.items()}

    def fill(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.repeat(array, batch, axis=0) for name, array in arrays.items()}

    return replace(
        case, name=f"{batch} times the first sample", inputs=fill(alone), outputs=fill(model(alone))
    )


def _refuse_unfit(ports: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any], *, batched: bool) -> None:
    """Raise GateError for an array that Triton would refuse by the configuration."""
    for port in ports:
        array, dims = arrays[port["name"]], triton_config.dims(port, batched=batched)
        shape = array.shape[1:] if batched else array.shape
        fits = len(shape) == len(dims) and all(d in (-1, size) for d, size in zip(dims, shape, strict=True))
        if not fits or str(array.dtype) != port["dtype"]:
            raise GateError(
                f"{port['name']!r} is {array.dtype} {list(array.shape)} in a reference case, but the ONNX "
                f"file says {port['dtype']} {port['shape']}",
                fix="export it again",
            )
