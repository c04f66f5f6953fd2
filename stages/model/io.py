"""`model.io`: how raw input becomes tensors, and tensors an answer, as data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Code,
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
    module_path,
)

from . import bundles, io_params, io_spec, picture_configs, sound_spec
from .bundles import Bundle

if TYPE_CHECKING:
    from ...server.raw import rawio  # noqa: F401 - so that the key holds the runtime's source

_VERSION = 1


class ModelIo(Stage):
    """Declare how pictures, texts, sounds or rows become the model's inputs, and its outputs an answer.

    The output is a small folder that `serve` and the packages use beside the model. With `golden`,
    the declaration is compared with what the training code computes from real files.
    """

    uses = "model.io"
    packages = ("numpy", "torch", "safetensors", "pillow", "tokenizers", "soundfile", "soxr", "onnxruntime",
                "timm", "torchvision")  # fmt: skip
    preload = ("torch", "safetensors.torch")
    extra = "io"

    class Params(StageParams):
        """What the model takes and answers."""

        picture: io_params.Picture | None = Field(None, description="a sample is, or has, a picture")
        text: io_params.Text | None = Field(None, description="a sample is, or has, a text")
        sound: io_params.Sound | None = Field(None, description="a sample is, or has, a sound")
        row: io_params.Row | None = Field(None, description="a sample is a row of named columns")
        preprocess: Code | None = Field(
            None, description="function(bytes, text or JSON) → the tensors of a sample, for anything else"
        )
        preprocessor: str | None = Field(
            None, pattern=r"^(timm|torchvision):\S+$",
            description="whose preprocessing to use: timm:MODEL, or torchvision:WEIGHTS, e.g. "
            "torchvision:ResNet18_Weights.IMAGENET1K_V1",
        )  # fmt: skip
        answer: io_params.Answer = Field(io_params.Answer(), description="the answer")
        postprocess: Code | None = Field(
            None, description="function(outputs of a sample by name) → the answer, as JSON has it"
        )
        requirements: list[str] = Field([], description="lines of requirements.txt for these functions")
        golden: Code | None = Field(
            None, description="function(path) of the training: the tensors, or the answer, of a raw file"
        )
        tolerance: float = Field(
            1e-5, ge=0, description="largest difference from golden's tensor, as a share of its largest value"
        )

        def check_inputs(self, given: Collection[str]) -> None:
            """Raise StageError for raw files without the function that reads them, or the reverse."""
            if ("golden" in given) != (self.golden is not None):
                raise StageError(
                    "`golden` is a function and a folder of raw files: one is missing",
                    fix="set `with: {golden: …}` and `inputs: {golden: …}`, or neither",
                )

    class Inputs(StageInputs):
        """The model, and what was saved beside it."""

        model: Folder = Field(description="the bundle of the model")
        folder: Folder | None = Field(
            None, description="a folder of save_pretrained: its tokenizer or preprocessor, and its labels"
        )
        tokenizer: File | None = Field(None, description="a tokenizer.json")
        labels: File | None = Field(
            None,
            description="the classes' names: a line each, a list of JSON, or a config.json with id2label",
        )
        golden: Folder | None = Field(None, description="raw files for `golden`")
        files: dict[str, File | Folder] = Field(
            default={},
            description="files and folders that these functions open: by the name that `golden` opens, and "
            "beside their code in the artifact",
        )

    class Outputs(StageOutputs):
        """The declaration."""

        io: Folder = Output("io", "io.json, and the files that it needs")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Complete, write, open, compare."""
        bundle = bundles.load_bundle(inputs.model)
        folder = outputs.io
        folder.mkdir(exist_ok=True)
        spec = _readers(ctx, params, inputs, bundle, folder)
        if spec:
            _check_filled(spec, bundle)
        _copy_files(inputs.files, folder / "code" if params.preprocess or params.postprocess else None)
        if params.postprocess:
            answer: dict[str, Any] = {"postprocess": _copied(ctx, params.postprocess, folder)}
        else:
            mask = spec.get("text", {}).get("mask")
            answer = io_spec.answer_spec(params.answer, bundle, _labels(inputs), mask)
        spec |= {"version": _VERSION, "answer": answer, "requirements": params.requirements}
        text = json.dumps(spec, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "io.json").write_text(text + "\n", "utf-8")
        _try(ctx, params, inputs, bundle, folder)
        ctx.figure("takes", sorted(set(spec) - {"version", "answer", "requirements"}))  # type: ignore[arg-type]
        ctx.figure("answers", answer.get("kind", "postprocess"))


def _readers(
    ctx: Context, params: ModelIo.Params, inputs: ModelIo.Inputs, bundle: Bundle, folder: Path
) -> dict[str, Any]:
    """Return what reads a sample, by its kind."""
    ports = bundle.inputs
    spec: dict[str, Any] = {}
    if picture := _picture(params, inputs, bundle):
        spec["picture"] = picture
    if sound := _sound(params, inputs, bundle):
        spec["sound"] = sound
    if params.row:
        spec["row"] = io_spec.row_spec(params.row, ports)
    source = inputs.tokenizer or inputs.folder
    if params.text or inputs.tokenizer or (inputs.folder and (inputs.folder / "tokenizer.json").is_file()):
        if source is None:
            raise StageError("texts need a tokenizer", fix="set inputs: {tokenizer: tokenizer.json}")
        spec["text"], file = io_spec.text_spec(params.text or io_params.Text(), source, ports)
        shutil.copyfile(file, folder / "tokenizer.json")
    if params.preprocess:
        code = _copied(ctx, params.preprocess, folder)
        spec["python"] = {"preprocess": code, "tensors": bundle.input_names}
    return spec


def _check_filled(spec: Mapping[str, Any], bundle: Bundle) -> None:
    """Raise StageError for an input that nothing gives."""
    given = {name for said in spec.values() for name in _tensors(said)}
    missing = [repr(name) for name in bundle.input_names if name not in given]
    if missing:
        said = f"the model takes {', '.join(missing)}, which nothing here gives"
        raise StageError(said, fix="declare picture, text, sound or row, or use preprocess")


def _tensors(spec: Mapping[str, Any]) -> list[str]:
    """Return the inputs that one kind gives."""
    single = [spec.get(key) for key in ("tensor", "ids", "mask", "types")]
    return [name for name in single if name] + list(spec.get("tensors", ()))


def _picture(params: ModelIo.Params, inputs: ModelIo.Inputs, bundle: Bundle) -> dict[str, Any] | None:
    """Return how pictures are read: as the pipeline says, a library, or the folder's processor."""
    if params.preprocessor:
        if params.picture:
            raise StageError(
                "`picture` and `preprocessor` both say how pictures are read", fix="leave one out"
            )
        return io_spec.fit_picture(picture_configs.of_library(params.preprocessor), bundle.inputs)
    if params.picture:
        return io_spec.picture_spec(params.picture, bundle.inputs)
    config = _processor(inputs, "image_processor")
    if not config or "feature_extractor_type" in config:
        return None
    return io_spec.fit_picture(picture_configs.of_hub(config), bundle.inputs)


def _sound(params: ModelIo.Params, inputs: ModelIo.Inputs, bundle: Bundle) -> dict[str, Any] | None:
    """Return how sounds are read: as the pipeline says, over what the folder's feature extractor says."""
    config = _processor(inputs, "feature_extractor")
    if "feature_extractor_type" in config:
        said = sound_spec.of_hub(config).model_dump(exclude_unset=True)
        own = params.sound.model_dump(exclude_unset=True) if params.sound else {}
        return sound_spec.sound_spec(io_params.Sound(**said | own), bundle.inputs)
    return sound_spec.sound_spec(params.sound, bundle.inputs) if params.sound else None


def _processor(inputs: ModelIo.Inputs, part: str) -> dict[str, Any]:
    """Return what a saved processor says, {} where none is; `part` is its name in processor_config.json."""
    if inputs.folder is None:
        return {}
    config: dict[str, Any] = io_spec.read_json(inputs.folder / "preprocessor_config.json")
    return config or io_spec.read_json(inputs.folder / "processor_config.json").get(part) or {}


def _labels(inputs: ModelIo.Inputs) -> list[str | int] | None:
    if inputs.labels:
        return io_spec.labels_of(inputs.labels)
    config = inputs.folder / "config.json" if inputs.folder else None
    if config is None or "id2label" not in io_spec.read_json(config):
        return None
    return io_spec.labels_of(config)


def _copy_files(files: Mapping[str, Path], code: Path | None) -> None:
    """Put the files that functions open where `golden` runs, and with the user's code."""
    for name, file in files.items():
        for place in filter(None, (Path.cwd(), code)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                shutil.copytree(file, place / name, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(file, place / name)


def _copied(ctx: Context, code: str, folder: Path) -> str:
    """Copy the modules that a function of the user's needs, and return its name there."""
    path, _, name = code.partition(":")
    if not path.endswith(".py"):
        raise StageError(
            f"{code!r} is of an installed package", fix="name a function of a file of the project"
        )
    for source, file in ctx.code_files.items():
        place = folder / "code" / module_path(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return f"{module_path(path)}:{name}"


def _try(ctx: Context, params: ModelIo.Params, inputs: ModelIo.Inputs, bundle: Bundle, folder: Path) -> None:
    """Open what was written, run the model's own outputs through the answer, and compare with golden."""
    from ...server.raw import rawio
    from . import golden

    try:
        io = rawio.RawIo(folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # Functions of the user's were imported.
        raise StageError(f"the io can't be opened: {type(error).__name__}: {first_line(error)}") from error
    case = bundle.cases[0]
    io.answers(_first(case.outputs, bundle.outputs), _first(case.inputs, bundle.inputs))
    if params.golden is None or inputs.golden is None:
        ctx.log("not proved: no `golden` says what the training code makes of raw files")
        return
    files = golden.raw_files(inputs.golden)
    run = golden.runner(bundle, ctx.threads)
    for name, value in golden.check(io, files, ctx.load(params.golden), run, params.tolerance).items():
        ctx.figure(name, value)


def _first(arrays: Mapping[str, Any], ports: Any) -> dict[str, Any]:
    import numpy as np

    return {port.name: np.moveaxis(arrays[port.name], port.batch or 0, 0) for port in ports}
