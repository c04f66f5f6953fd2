"""What a folder of save_pretrained adds to a repository, and what transformers calls its models and tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deploy_runner.sdk import StageError

from .placed import Placed

__all__ = ["Kind", "config", "files", "kind_of"]

_TAKEN = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|generation_config\.json"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|spiece\.model|sentencepiece\.bpe\.model|tokenizer\.model|(source|target)\.spm|chat_template\.(json|jinja)"
    r"|(preprocessor|processor|video_preprocessor)_config\.json"
    r"|modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json"
    r"|\d+_\w+/(config\.json|model\.safetensors)"
)
"""What the libraries read; what training left behind and pickles are not published."""
_TOKENIZER = "tokenizer_config.json"
_NEW_CLASS, _OLD_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""The same class, whose first name only transformers 5 knows, and whose second every release knows."""
_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Where releases before transformers 5 record the folder on the machine that trained."""


class Kind(NamedTuple):
    """How transformers loads an architecture, and the Hub's task of it."""

    auto: str
    task: str


_KINDS = {
    "ForAudioClassification": "audio-classification", "ForCTC": "automatic-speech-recognition",
    "ForCausalLM": "text-generation", "ForDepthEstimation": "depth-estimation",
    "ForImageClassification": "image-classification", "ForMaskedLM": "fill-mask",
    "ForObjectDetection": "object-detection", "ForQuestionAnswering": "question-answering",
    "ForSemanticSegmentation": "image-segmentation", "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification", "LMHeadModel": "text-generation",
}  # fmt: skip
_OTHER_AUTO = {"LMHeadModel": "AutoModelForCausalLM"}


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """Return how the model of a config.json is loaded; None where it is none of transformers'."""
    names = config.get("architectures")
    if not config.get("model_type") or not isinstance(names, list) or not names:
        return None
    for suffix, task in _KINDS.items():
        if str(names[0]).endswith(suffix):
            return Kind(_OTHER_AUTO.get(suffix, f"AutoModel{suffix}"), task)
    return Kind("AutoModel", "feature-extraction" if str(names[0]).endswith("Model") else "")


def config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises StageError where there is none."""
    try:
        return _public(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, AttributeError):
        raise StageError("the folder has no config.json", fix="use a folder of save_pretrained") from None


def files(folder: Path, workdir: Path) -> dict[str, Placed]:
    """Return the folder's files by their path: weights, tokenizer, preprocessor."""
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    taken = {name: Placed(path, "folder") for name, path in found.items() if _TAKEN.fullmatch(name)}
    if _TOKENIZER in taken:
        taken[_TOKENIZER] = Placed(_readable(taken[_TOKENIZER].path, workdir), "folder")
    return taken


def _readable(path: Path, workdir: Path) -> Path:
    """Return a tokenizer_config.json that every release reads, and that names no folder of a machine."""
    try:
        given = json.loads(path.read_text("utf-8"))
        settings = _public(given)
    except (ValueError, AttributeError):
        return path
    if settings.get("tokenizer_class") == _NEW_CLASS:
        settings["tokenizer_class"] = _OLD_CLASS
    if settings == given:
        return path
    changed = workdir / _TOKENIZER
    changed.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return changed


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without absolute paths; the name of a repository stays."""
    private = {name for name in _PLACES if str(settings.get(name, "")).startswith(("/", "~", "."))}
    return {name: value for name, value in settings.items() if name not in private}
