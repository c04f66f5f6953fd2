"""`torch.aot`: the model as machine code, compiled ahead of time by AOTInductor (.pt2)."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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

from ...server import aot
from ...server.problems import UnfitArtifact
from ..model import bundles
from ..model.bundles import Bundle
from ..model.compare import Model, Tolerances, compare, gate
from ..model.flattening import named_arrays
from . import compiled
from .export import exported

_SIMD_BITS = {"auto": None, "avx2": 256}
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class TorchAot(Stage):
    """Compile the model to machine code for this kind of processor; load it back and compare.

    The package runs without the model's Python code, with the torch version that compiled it, on
    processors that have the vector instructions it was compiled for. It contains both facts, and
    serve rejects it elsewhere. In your own program set AOTI_RUNTIME_CHECK_INPUTS=1, as every stage
    and serve do: without it, another type or size gives wrong numbers without an error.
    """

    uses = "torch.aot"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa", "g++")
    extra = "torch"

    class Params(Tolerances):
        """For which processor, and how close the program must be."""

        isa: Literal["auto", "avx2"] = Field(
            "auto",
            description="vector instructions: all that this processor has, or on x86 AVX2, which almost "
            "every server has",
        )

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The package."""

        model: File = Output("model.pt2", "the package of AOTInductor, loaded back and compared")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Export, compile, strip, load back, compare."""
        if shutil.which("g++") is None:
            raise StageError("torch.aot needs the compiler g++, which is not on the PATH",
                             fix="install it, e.g. apt-get install g++")  # fmt: skip
        bundle = bundles.load_bundle(inputs.model)
        program = exported(bundle, compiled.example(bundle))
        with compiled.plainly_named(ctx.workdir) as folder:
            package = _compile(program, folder, params.isa)
            most = compiled.limits(package, bundle)
            isa = compiled.strip(package, outputs.model, _described(bundle, most))
        parity = compare(bundle.cases, runner(outputs.model, bundle), atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        ctx.figure("bytes", outputs.model.stat().st_size)
        ctx.figure("isa", isa)
        if most:
            ctx.figure("largest", most)  # type: ignore[arg-type]
        ctx.figure("cases", [case.name for case in bundle.cases])


def _described(bundle: Bundle, most: Mapping[str, int]) -> dict[str, Any]:
    """Return what the package says of itself, so that it can be served alone."""
    import torch

    axes = [replace(axis, max=most.get(label, axis.max)) for label, axis in bundle.axes.items()]
    return {
        "inputs": [port.as_dict() for port in bundle.inputs],
        "outputs": [port.as_dict() for port in bundle.outputs],
        "axes": [axis.as_dict() for axis in axes],
        "torch": torch.__version__.partition("+")[0],
    }


def _compile(program: Any, workdir: Path, isa: str) -> Path:
    """Compile into a folder of its own: what torch keeps of earlier programs would change the names.

    The bytes depend on the program, torch, g++ and the instructions alone: not on paths, nor on threads.
    """
    import torch

    configs = {
        "aot_inductor.model_name_for_generated_files": "model",
        "aot_inductor.check_lowerbound": False,  # Else a batch of one, which we compare, is refused.
        "aot_inductor.precompile_headers": False,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.enable_frame_pointer": False,
        "cpp_cache_precompile_headers": False,
        "compile_threads": 1,
        "cpp.cxx": (None, str(compiled.compiler(workdir))),
        "cpp.march": "",  # By `isa` alone, which the package names: `native` is this very processor.
        "cpp.simdlen": _SIMD_BITS[isa],
        "cpp.dynamic_threads": True,
    }
    package = workdir / "compiled.pt2"
    try:
        with _cache_in(workdir / "inductor"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=configs
            )
    except Exception as error:  # The compiler's own classes share no other base.
        raise StageError(f"AOTInductor can't compile the model: {first_line(error)}",
                         fix="use torch.export or onnx.export") from error  # fmt: skip
    return package


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before


def runner(path: Path, bundle: Bundle) -> Model:
    """Return a compiled package as a function of arrays by name."""
    try:
        program = aot.load(path)
    except UnfitArtifact as error:
        raise StageError(str(error)) from error

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        try:
            result = program(bundles.tensors(arrays, bundle.input_names))
        except RuntimeError as error:
            shapes = {name: tuple(array.shape) for name, array in arrays.items()}
            said = f"the compiled program can't run inputs of shape {shapes}: {first_line(error)}"
            raise StageError(said, fix="set `min` and `max` in `dynamic`") from error
        return named_arrays(result, bundle.output_names)

    return run
