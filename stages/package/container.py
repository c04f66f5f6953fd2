"""`package.container`: a model as the build context of a container that serves it."""

from __future__ import annotations

import importlib
import json
import mmap
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    first_line,
    sha256_file,
)

from ..model import bundles
from ..model.answers import answering
from ..model.compare import Model, compare, gate
from ..verify import runtime
from . import image, locked, packed, raw, smoke

if TYPE_CHECKING:
    from ...server import __main__, handlers, health, trial  # noqa: F401 - so that the key holds the server's source

_QUANTIZED = (b"QuantizeLinear", b"QLinear", b"Integer", b"quantized")


class PackageContainer(Stage):
    """Write the build context of a container that serves a model: Dockerfile, app, model, requirements.

    The app is FastAPI on uvicorn, or Flask on waitress, with onnxruntime or torch. The stage runs
    it on the reference cases as the container would, so that a context that can't serve fails here.
    """

    uses = "package.container"
    packages = (
        "onnxruntime", "torch", "numpy", "fastapi", "uvicorn", "uvloop", "httptools", "orjson",
        "prometheus-client", "flask", "waitress", "packaging", "starlette", "pydantic", "anyio", "protobuf",
        "flatbuffers", "werkzeug", "jinja2", "python-multipart", "pillow", "tokenizers", "soundfile", "soxr",
        "backports.zstd", "fastapi-swagger",
    )  # fmt: skip
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "serve"

    class Params(runtime.OnDevice):
        """How it is served."""

        server: Literal["fastapi", "flask"] = Field(
            "fastapi", description="FastAPI on uvicorn, or Flask on waitress"
        )
        name: str = Field(
            "model", pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the model's name in /v2, and the image's"
        )
        base_image: str = Field(
            "python:3.11.14-slim-bookworm", pattern=r"^\S+:\S+$",
            description="the base image by its tag; with @sha256:… by its digest too",
        )  # fmt: skip
        user: int = Field(
            10001, ge=0, description="the numeric id of the user that the server runs as; 0 is root"
        )
        options: list[str] = Field(
            [], description="further options of the server, e.g. [--max-batch, '32']: the image's environment"
        )
        requirements: list[str] | None = Field(
            None,
            description="lines of requirements.txt (default: the tested versions and their dependencies)",
        )
        atol: float | None = Field(
            None, ge=0, description="absolute tolerance of the app's answers (default: by rounding)"
        )
        rtol: float | None = Field(None, ge=0, description="relative tolerance")

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(
            description="an ONNX artifact, a TorchScript file, or a package of torch.aot"
        )
        reference: Folder | None = Field(
            None,
            description="the bundle of model.prepare; some of its cases go into the image, as a smoke test",
        )
        io: Folder | None = Field(
            None, description="the output of model.io: the container takes raw input and answers with labels"
        )
        lock: File | None = Field(
            None,
            description="a requirements.txt with a hash for each line, as `uv pip compile --generate-hashes` "
            "makes it of the context's: the image installs nothing else",
        )

    class Outputs(StageOutputs):
        """The context."""

        context: Folder = Output("context", "Dockerfile, app/, model/, requirements.txt, README.md")
        smoke: File | None = Output("smoke.npz", "requests with the model's answers, for push.sagemaker")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Describe, copy, write, try."""
        files, described = packed.model_files(inputs.model, inputs.reference)
        if params.device != "cpu":
            described["device"] = params.device
        folder = outputs.context
        own_code = raw.has_code(inputs.io)
        options = image.environment(
            params.server,
            described["format"],
            params.name,
            params.options,
            device=params.device,
            own_code=own_code,
        )
        _copy(files, folder / "model")
        if inputs.io is not None:
            shutil.copytree(inputs.io, folder / "model" / "io", copy_function=shutil.copyfile)
        run, cases = _cases(ctx, params, inputs)
        if cases:
            described["of_largest"] = _of_largest(folder / "model" / described["file"])
            bundles.write_cases(folder / "model" / "cases.npz", _telling(cases))
        _write(folder / "model" / "model.json", json.dumps(described, indent=2, sort_keys=True) + "\n")
        _copy_app(folder / "app")
        _write_texts(folder, params, described, options, inputs)
        _try(ctx, params, folder, options, cases)
        if outputs.smoke is not None and cases:
            smoke.write(outputs.smoke, smoke.packed_cases(cases, run), smoke.Form.NAMED)
        ctx.figure("bytes", sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))
        ctx.figure("server", params.server)


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)


def _copy_app(folder: Path) -> None:
    from ...server import swagger

    source = Path(swagger.__file__).parent
    for part in (".", "raw"):
        _copy({path.name: path for path in sorted((source / part).glob("*.py"))}, folder / part)
    if (documents := swagger.source()) is not None:
        _copy({name: documents / name for name in swagger.FILES}, folder / swagger.FOLDER)


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="\n")


def _write_texts(
    folder: Path, params: PackageContainer.Params, described: dict[str, Any], options: Mapping[str, str],
    inputs: PackageContainer.Inputs,
) -> None:  # fmt: skip
    lines = params.requirements
    if lines is None:
        roots = image.roots(params.server, described["format"], params.device)
        lines = image.requirements([*roots, *raw.libraries(inputs.io)])
        lines += raw.own_requirements(inputs.io)
    text = "".join(f"{line}\n" for line in lines)
    digest = sha256_file(folder / "model" / described["file"])
    _write(folder / "requirements.txt", text if inputs.lock is None else locked.read(inputs.lock, lines))
    hashes = "" if inputs.lock is None else locked.HASHES
    dockerfile = image.dockerfile(
        params.name, params.base_image, params.user, params.server, options, hashes=hashes
    )
    _write(folder / "Dockerfile", dockerfile)
    _write(folder / ".dockerignore", image.IGNORED)
    readme = image.readme(
        params.name, digest, described, device=params.device, port=options["SERVE_PORT"], user=params.user
    )
    _write(folder / "README.md", readme)


def _cases(
    ctx: Context, params: PackageContainer.Params, inputs: PackageContainer.Inputs
) -> tuple[Model, list[bundles.Case]]:
    """Return the model by its runtime, and the reference inputs with what it gives for them."""
    if inputs.reference is None:
        return (lambda arrays: {}), []
    bundle = bundles.load_bundle(inputs.reference)
    run = runtime.open_model(ctx, inputs.model, bundle, device=params.device)
    return run, [replace(case, outputs=run(case.inputs), allowed={}) for case in bundle.cases]


def _telling(cases: Sequence[bundles.Case]) -> list[bundles.Case]:
    """Return the first cases in which each axis that varies has two sizes."""
    kept: list[bundles.Case] = []
    seen: dict[tuple[str, int], set[int]] = {}
    for case in cases:
        sizes = {(n, i): size for n, a in case.inputs.items() for i, size in enumerate(a.shape)}
        told = {place for place, size in sizes.items() if size not in seen.get(place, ())}
        if not kept or any(len(seen[place]) < 2 for place in told):
            kept.append(case)
            for place, size in sizes.items():
                seen.setdefault(place, set()).add(size)
    return kept


def _of_largest(model: Path) -> float:
    """Return how far an answer may be from a case on another machine, as a share of the largest output.

    Sums are ordered differently there, and int8 kernels without VNNI saturate.
    """
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        quantizes = any(data.find(name) >= 0 for name in _QUANTIZED)
    return 0.05 if quantizes else 1e-3


@contextmanager
def _app(folder: Path) -> Iterator[Any]:
    """Import the context's own copy of the app, and forget it."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("app.trial")
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n == "app" or n.startswith("app.")]:
            del sys.modules[name]


def _try(
    ctx: Context, params: PackageContainer.Params, folder: Path, options: Mapping[str, str],
    cases: Sequence[bundles.Case],
) -> None:  # fmt: skip
    """Load the context's model by its app, POST the reference cases, compare the answers."""
    bodies = [
        json.dumps({"inputs": {n: a.tolist() for n, a in case.inputs.items()}}).encode() for case in cases
    ]
    with _app(folder) as trial:
        try:
            found = trial.answers([str(folder / "model")], bodies, options)
        except Exception as error:
            said = first_line(error)
            raise StageError(f"the container would fail to serve the model: {said}") from error
    if not cases:
        return
    refused = next(
        (f"{status}: {body.decode(errors='replace')[:300]}" for status, body in found if status != 200), ""
    )
    if refused:
        raise GateError(f"the app answers a reference case with {refused}")
    answers = iter(json.loads(body)["outputs"] for _, body in found)
    run = answering(cases, lambda arrays: next(answers))
    parity = compare(cases, run, atol=params.atol, rtol=params.rtol)
    gate(ctx, parity, atol=params.atol, rtol=params.rtol)
