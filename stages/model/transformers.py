"""`model.transformers`: a folder of save_pretrained → a checked model bundle with reference outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

from . import bundles, hub_inputs, state_dicts, tensor_files
from .preparing import Asked, Built, prepare
from .variation import Source

if TYPE_CHECKING:
    from torch import nn

Task = Literal[
    "audio-classification", "ctc", "depth-estimation", "feature-extraction", "fill-mask",
    "image-classification", "image-segmentation", "object-detection", "question-answering",
    "sentence-similarity", "speech-to-text", "text-classification", "text-generation", "text-to-text",
    "token-classification", "zero-shot-image-classification",
]  # fmt: skip
_TASKS: dict[Task, str] = {
    "audio-classification": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "depth-estimation": "AutoModelForDepthEstimation",
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "object-detection": "AutoModelForObjectDetection",
    "question-answering": "AutoModelForQuestionAnswering",
    "sentence-similarity": "AutoModel",
    "speech-to-text": "AutoModelForSpeechSeq2Seq",
    "text-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "text-to-text": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
}
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}
_NEEDED = {"encoder": "get_encoder", "decoder": "get_decoder", "text": "get_text_features",
           "image": "get_image_features"}  # fmt: skip
_OWN_FACTORY = "use model.prepare, with a factory that builds the model"


class ModelTransformers(Stage):
    """Read a folder of save_pretrained, check the model, and store what it computes as the reference.

    The class is the one that the folder names, or the one for `task`. A folder that lacks weights
    of the class (a head that was never trained) is rejected. Inputs, their values and the dynamic
    axes follow from the configuration; sequences are padded. Code in the folder is never executed.
    """

    uses = "model.transformers"
    packages = ("torch", "safetensors", "numpy", "transformers")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "transformers"

    class Params(Asked):
        """What of the model."""

        task: Task | None = Field(
            None, description="what the model is for (default: the class that the folder names)"
        )
        part: Literal["encoder", "decoder", "text", "image", "with_past"] | None = Field(
            None,
            description="one part: the encoder or decoder of a model that has both, what computes the "
            "features of texts or images of a model such as CLIP, or of a language model what continues a "
            "text, with the keys and values of what came before",
        )

        fixed: list[str] = Field(
            default=[],
            description="axes that keep the size of the example: height, width, sequence, …; for models "
            "that the exporters can't convert otherwise",
        )

    class Inputs(StageInputs):
        """The model."""

        folder: Folder = Field(
            description="a folder with config.json, the weights and the model's other files"
        )

    class Outputs(StageOutputs):
        """The bundle."""

        model: Folder = Output("model", "the input of every conversion")
        checklist: File = Output("checklist.json", "the result of the pre-save checklist")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Load, choose the inputs, run, store."""
        from . import hub_net

        pooling = _pooling(inputs.folder, params)
        model = bundles.frozen(_load(ctx, inputs.folder, params.task))
        lacks = params.part == "with_past" and not type(model).__name__.endswith(hub_inputs.CAUSAL)
        if lacks or not hasattr(model, _NEEDED.get(params.part or "", "forward")):
            raise StageError(f"{type(model).__name__} has no part {params.part!r}", fix="remove `part`")
        config: Any = model.config
        kwargs = {"architecture": type(model).__name__, "config": json.loads(config.to_json_string()),
                  "part": params.part, "pooling": pooling}  # fmt: skip
        taken = hub_net.taken(model, params.part)
        given = hub_inputs.given_inputs(taken, params.part, _settings(inputs.folder))
        net = bundles.frozen(hub_net.Net(taken, params.part, pooling))
        given = hub_inputs.held(hub_inputs.with_free_sizes(net, given), params.fixed)
        ports, axes = hub_inputs.ports_and_axes(given)
        batch = hub_inputs.BATCH if hub_inputs.BATCH in axes else None
        weights = ctx.workdir / "weights.safetensors"
        tensor_files.write(weights, state_dicts.find_state_dict(net, None)[0])
        ctx.figure("class", type(model).__name__)
        prepare(
            ctx, net, Source(ports, batch, None), axes, params,
            Built("hub_net.py:build", kwargs, {"hub_net.py": Path(str(hub_net.__file__))},
                  {"transformers": ctx.packages.get("transformers", "")}, weights),
            outputs.model, outputs.checklist, named=True,
        )  # fmt: skip


def _load(ctx: Context, folder: Path, task: Task | None) -> nn.Module:
    """Return the model in float32, with all of its weights."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = _config(folder)
    kind = _kind(config, task)
    try:
        model, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:
        raise StageError(
            f"transformers {transformers.__version__} can't load the folder: {first_line(error)}",
            fix="check that it has config.json and model.safetensors, and that `task` fits its model",
        ) from error
    lost = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise StageError(
            f"the folder has no weights for {shown} of {type(model).__name__}: they were never trained",
            fix="choose the `task` that the model was trained for",
        )
    if dropped := sorted(info["unexpected_keys"]):
        ctx.figure("dropped", dropped)
        ctx.log(f"in the folder only, dropped: {', '.join(dropped)}")
    loaded: nn.Module = model
    return loaded


def _config(folder: Path) -> Any:
    import transformers

    given = _json(folder / "config.json")
    if not given:
        adapter = (folder / "adapter_config.json").exists()
        raise StageError(
            "the folder is an adapter without its model" if adapter else "the folder has no config.json",
            fix="merge the adapter into its model first" if adapter else "use a folder of save_pretrained",
        )
    if given.get("quantization_config"):
        raise StageError("the model in the folder is quantized, which can't be converted",
                         fix="use the model that it was made from")  # fmt: skip
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if given.get("auto_map"):
            raise StageError(
                "the model in the folder needs code that is in the folder, which is never executed",
                fix=_OWN_FACTORY,
            ) from error
        kind = given.get("model_type")
        raise StageError(f"transformers {transformers.__version__} doesn't know the model_type {kind!r}: "
                         f"{first_line(error)}", fix="upgrade transformers") from error  # fmt: skip


def _kind(config: Any, task: Task | None) -> Any:
    """Return the class to load. Raises StageError where nothing tells it."""
    import transformers

    if task is not None:
        return getattr(transformers, _TASKS[task])
    named = config.architectures or []
    kind = getattr(transformers, named[0], None) if named else None
    if kind is None:
        said = f"transformers has no class {named[0]}" if named else "config.json names no architecture"
        raise StageError(said, fix="set `task`")
    return kind


def _pooling(folder: Path, params: ModelTransformers.Params) -> dict[str, bool] | None:
    """Return how sentence-transformers pools the states, None where it isn't asked to."""
    modules = _json(folder / "modules.json")
    if params.task != "sentence-similarity" and (params.task or params.part or not modules):
        return None
    try:
        kinds = {str(part["type"]).rpartition(".")[2]: folder / part["path"] for part in modules or []}
    except (TypeError, KeyError):
        raise StageError("modules.json is not one of sentence-transformers", fix=_OWN_FACTORY) from None
    others = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    settings = _json(kinds["Pooling"] / "config.json") if "Pooling" in kinds else {}
    chosen = sorted(name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True)
    if others or len(chosen) > 1 or not set(chosen) <= set(_POOLING):
        raise StageError(f"the sentence embedding has {', '.join(others or chosen)}, which is not supported",
                         fix=_OWN_FACTORY)  # fmt: skip
    found = {_POOLING[chosen[0]] if chosen else "mean": True}
    return found | ({"normalize": True} if "Normalize" in kinds else {})


def _settings(folder: Path) -> dict[str, Any]:
    """Return what the preprocessor's file says."""
    found = _json(folder / "preprocessor_config.json") or {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> Any:
    """Return what a JSON file holds, nothing where it isn't one."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
