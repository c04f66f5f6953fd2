"""Compose config.json, by which every client loads a repository, and by which the Hub counts downloads.

Of a model of transformers it is that model's own, of a class with huggingface_hub's mixin what the class
would save; of any other it describes inputs and outputs. Which files count:
https://huggingface.co/docs/hub/models-download-stats
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError

from ...model.bundles import Bundle, Port
from . import raw_io

__all__ = ["composed", "own", "read", "text"]

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification",
                "ForAudioClassification")  # fmt: skip


def composed(
    own_config: Mapping[str, Any], bundle: Bundle | None, io: Mapping[str, Any] | None, paths: Iterable[str]
) -> dict[str, Any]:
    """Return config.json, empty where nothing is known. `own_config` is that of `own`, `paths` the files."""
    if bundle is not None and bundle.hub_config is not None:
        return dict(bundle.hub_config)  # Its class may take any further name for an argument.
    config = dict(own_config)
    if bundle is not None:
        config["inputs"] = [_port(port) for port in bundle.inputs]
        config["outputs"] = [_port(port) for port in bundle.outputs]
    names = raw_io.labels(io) or _numbered(config, bundle)
    if names:
        config |= {"id2label": {str(place): name for place, name in enumerate(names)},
                   "label2id": {name: place for place, name in enumerate(names)}}  # fmt: skip
        if "model_type" not in config:  # transformers counts them itself.
            config["num_labels"] = len(names)
    beside = {Path(path).name.removesuffix("_data"): 1 for path in paths if path.endswith(".onnx_data")}
    if beside:
        said = config.get("transformers.js_config", {})
        config["transformers.js_config"] = {**said, "use_external_data_format": dict(sorted(beside.items()))}
    return config


def own(bundle: Bundle | None) -> dict[str, Any]:
    """Return the config of the transformers' model that a bundle holds; nothing for another."""
    if bundle is None or not isinstance(bundle.kwargs.get("config"), dict):
        return {}
    config, architecture = bundle.kwargs["config"], bundle.kwargs.get("architecture")
    return {**config, "architectures": [architecture]} if architecture and "model_type" in config else {}


def read(path: Path) -> dict[str, Any]:
    """Return a config.json of the user's own. Raises StageError for what isn't one."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError):
        raise StageError("config.json is not a JSON object", fix="correct the file in `files`") from None


def text(config: Mapping[str, Any]) -> str:
    """Return the text of a file of settings."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _port(port: Port) -> dict[str, Any]:
    """Return a port with its shape, the axes that vary by their names."""
    shape = [port.dynamic.get(axis, size) for axis, size in enumerate(port.shape)]
    return {"name": port.name, "dtype": port.dtype, "shape": shape}


def _numbered(config: Mapping[str, Any], bundle: Bundle | None) -> list[str]:
    """Return the labels that transformers would make up for a classifier whose config names none."""
    named = str((config.get("architectures") or [""])[0])
    if "id2label" in config or bundle is None or not named.endswith(_CLASSIFIERS):
        return []
    logits = next((port for port in bundle.outputs if port.name == "logits"), None)
    return [f"LABEL_{place}" for place in range(logits.shape[-1])] if logits is not None else []
