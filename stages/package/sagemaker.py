"""`package.sagemaker`: a model as the model.tar.gz that an inference container takes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
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
    StageParams,
    first_line,
)

from ...server.archives import BadArchive, unpack
from ..model import bundles
from ..model.answers import answering
from ..model.compare import compare, gate
from . import archives, packed, raw, smoke


class PackageSagemaker(Stage):
    """Pack a model as model.tar.gz with `code/inference.py` and `code/requirements.txt`.

    The archive is unpacked again and its four functions are run on the reference cases, as the
    container would: what the container would reject fails here. Its bytes are reproducible.
    """

    uses = "package.sagemaker"
    packages = ("isal", "onnxruntime", "numpy", "torch", "pillow", "tokenizers", "soundfile", "soxr")
    preload = ("isal", "onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "sagemaker"

    class Params(StageParams):
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
        code: File | None = Field(None, description="your own inference.py instead of the built-in one")
        io: Folder | None = Field(
            None, description="the output of model.io: the package takes raw input and answers with labels"
        )

    class Outputs(StageOutputs):
        """The package."""

        package: File = Output("model.tar.gz", "model, model.json, code/")
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
        staged = ctx.workdir / "staged"
        staged.mkdir()
        _write_code(staged, params, inputs, described)
        members = files | {
            "model.json": staged / "model.json",
            "code/inference.py": staged / "inference.py",
            "code/requirements.txt": staged / "requirements.txt",
        }
        members |= raw.members(inputs.io)
        tar_digest = archives.pack(outputs.package, members)
        ctx.figure("bytes", outputs.package.stat().st_size)
        ctx.figure("tar_sha256", tar_digest)
        ctx.figure("members", sorted(members))  # type: ignore[arg-type]
        _run_as_container(ctx, params, inputs, outputs)


def _write_code(
    staged: Path,
    params: PackageSagemaker.Params,
    inputs: PackageSagemaker.Inputs,
    described: Mapping[str, Any],
) -> None:
    from . import sagemaker_inference

    text = json.dumps(described, indent=2, sort_keys=True)
    (staged / "model.json").write_text(text + "\n", "utf-8")
    built_in = Path(sagemaker_inference.__file__)
    shutil.copyfile(inputs.code or built_in, staged / "inference.py")
    needed = ["numpy"] + (["onnxruntime"] if described["format"] == "onnx" else [])
    lines = params.requirements
    if lines is None:
        needed += [name for name in raw.libraries(inputs.io) if name != raw.FORMS]
        lines = [f"{name}=={version(name)}" for name in needed] + raw.own_requirements(inputs.io)
    (staged / "requirements.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


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
    with _own_modules(folder):
        _try(ctx, params, inputs, outputs, folder)


@contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
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
    from ..verify import runtime

    spec = importlib.util.spec_from_file_location("inference", folder / "code" / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    with _told("is imported"):
        spec.loader.exec_module(code)
    missing = [n for n in ("model_fn", "input_fn", "predict_fn", "output_fn") if not hasattr(code, n)]
    if missing:
        raise StageError(f"code/inference.py defines no {missing[0]}, which the container calls")
    with _told("calls model_fn"):
        model = code.model_fn(str(folder))
    if inputs.reference is None:
        return
    bundle = bundles.load_bundle(inputs.reference)
    run = runtime.open_model(ctx, inputs.model, bundle)
    cases = [replace(c, outputs=run(c.inputs), allowed={}) for c in bundle.cases]

    def ask(arrays: Mapping[str, Any]) -> dict[str, Any]:
        body = smoke.request_body(arrays).decode()
        with _told("answers a request"):
            read = code.input_fn(body, "application/json")
            answer = code.output_fn(code.predict_fn(read, model), "application/json")
        return dict(json.loads(answer)["outputs"])

    parity = compare(cases, answering(cases, ask), atol=params.atol, rtol=params.rtol)
    gate(ctx, parity, atol=params.atol, rtol=params.rtol)
    assert outputs.smoke is not None
    bundles.write_cases(outputs.smoke, smoke.packed_cases(bundle.cases, run))
