"""`package.sagemaker`: a model as the model.tar.gz that an inference container takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    first_line,
)

from ...server.archives import BadArchive, unpack
from ...server.handlers import Handlers
from ..model import bundles
from ..model.answers import answering
from ..model.compare import compare, gate
from ..verify import runtime
from . import archives, entry_points, packed, raw, smoke


class PackageSagemaker(Stage):
    """Pack a model as a model.tar.gz for SageMaker's PyTorch image and its Ray Serve image.

    The archive is unpacked again and its functions are run on the reference cases, as the container
    would do, so that what the container would reject fails here. Its bytes are reproducible.
    """

    uses = "package.sagemaker"
    packages = ("isal", "onnxruntime", "numpy", "torch", "pillow", "tokenizers", "soundfile", "soxr")
    preload = ("isal", "onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "sagemaker"

    class Params(runtime.OnDevice):
        """What goes in."""

        requirements: list[str] | None = Field(
            None, description="lines of requirements.txt (default: the tested versions)"
        )
        atol: float | None = Field(
            None, ge=0, description="tolerance against the packed model itself (default: by rounding)"
        )
        rtol: float | None = Field(None, ge=0, description="relative tolerance")

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(description="an ONNX artifact, or a TorchScript file")
        reference: Folder | None = Field(None, description="the bundle of model.prepare")
        code: File | None = Field(
            None,
            description="your own inference.py: model_fn, and transform_fn or any of input_fn, predict_fn, "
            "output_fn; the rest is done as SageMaker's PyTorch toolkit does it",
        )
        wheels: Folder | None = Field(
            None, description="wheels for requirements.txt: the container then installs from them alone"
        )
        io: Folder | None = Field(
            None, description="the output of model.io: the package takes raw input and answers with labels"
        )

    class Outputs(StageOutputs):
        """The package."""

        package: File = Output(
            "model.tar.gz",
            "model, model.json, code/ for the PyTorch image, config.yaml and deployment.py for Ray Serve",
        )
        smoke: File | None = Output("smoke.npz", "requests with the packed model's answers")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Describe, pack, unpack, run as the container does."""
        files, described = packed.model_files(inputs.model, inputs.reference)
        if described["format"] == "aot":
            raise StageError(
                "a package of torch.aot runs only by the torch and on the processor it was compiled for, "
                "which SageMaker's own containers needn't have",
                fix="use onnx.export, or package.container, whose image answers /invocations too",
            )
        if params.device != "cpu":
            described["device"] = params.device
        staged = ctx.workdir / "staged"
        staged.mkdir()
        text = json.dumps(described, indent=2, sort_keys=True)
        (staged / "model.json").write_text(text + "\n", "utf-8")
        lines = params.requirements
        if lines is None:
            lines = entry_points.requirements(described["format"], inputs.io, params.device)
        members = files | {"model.json": staged / "model.json"} | raw.members(inputs.io)
        members |= entry_points.members(staged, inputs.code, lines, inputs.wheels)
        tar_digest = archives.pack(outputs.package, members)
        ctx.figure("bytes", outputs.package.stat().st_size)
        ctx.figure("tar_sha256", tar_digest)
        ctx.figure("members", sorted(members))  # type: ignore[arg-type]
        _run_as_container(ctx, params, inputs, outputs)


@contextmanager
def _told(when: str) -> Iterator[None]:
    """Say what the package's own code does when it fails."""
    try:
        yield
    except Exception as error:
        said = f"code/inference.py fails when it {when}: {type(error).__name__}: {first_line(error)}"
        raise StageError(said, fix="the container would fail in the same way") from error


def _run_as_container(
    ctx: Context,
    params: PackageSagemaker.Params,
    inputs: PackageSagemaker.Inputs,
    outputs: PackageSagemaker.Outputs,
) -> None:
    """Load the archive's own code and compare its answers with the packed model's."""
    folder = ctx.workdir / "container"
    try:
        unpack(outputs.package, folder)
    except BadArchive as error:
        raise StageError(str(error)) from None
    with own_modules(folder):
        _try(ctx, params, inputs, outputs, folder)


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Let the package's code import what is beside it, and forget that afterwards."""
    places, known = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = places
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                del sys.modules[name]


def _try(
    ctx: Context, params: PackageSagemaker.Params, inputs: PackageSagemaker.Inputs,
    outputs: PackageSagemaker.Outputs, folder: Path,
) -> None:  # fmt: skip
    bundle = bundles.load_bundle(inputs.reference) if inputs.reference else None
    run = runtime.open_model(ctx, inputs.model, bundle, device=params.device) if bundle else None
    with _told("is imported"):
        code = Handlers(folder)
    with _told("calls model_fn"):
        code.load()
    if bundle is None or run is None:
        return
    cases = [replace(c, outputs=run(c.inputs), allowed={}) for c in bundle.cases]
    form = _form(code, cases[0])

    def ask(arrays: Mapping[str, Any]) -> dict[str, Any]:
        with _told("answers a request"):
            answer, _ = code.transform(smoke.request_body(arrays, form), smoke.JSON_TYPE, smoke.JSON_TYPE)
        return smoke.outputs_of(answer, list(cases[0].outputs))

    parity = compare(cases, answering(cases, ask), atol=params.atol, rtol=params.rtol)
    gate(ctx, parity, atol=params.atol, rtol=params.rtol)
    assert outputs.smoke is not None
    smoke.write(outputs.smoke, smoke.packed_cases(bundle.cases, run), form)


def _form(code: Handlers, case: bundles.Case) -> smoke.Form:
    """Return the first form of a request that the package's code answers; the usual one if there is none."""
    few = smoke.few_rows(case)
    for form in smoke.forms(few):
        try:
            answer, _ = code.transform(smoke.request_body(few, form), smoke.JSON_TYPE, smoke.JSON_TYPE)
            smoke.outputs_of(answer, list(case.outputs))
        except Exception:
            continue
        return form
    return smoke.Form.NAMED
