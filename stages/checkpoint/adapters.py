"""Merge a LoRA adapter of peft into the weights that it was trained on: what `merge_and_unload` computes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ..model import ties
from ..model.state_dicts import StateDict
from . import spare
from .folders import ADAPTER

if TYPE_CHECKING:
    import torch

_CONFIG_BYTES = 1 << 20
_MOST = 1_000_000
_USED = {"peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "modules_to_save"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
"""What tells where the adapter is, or how it was trained, and doesn't change how it is merged."""
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
"""Values that don't either. PiSSA, OLoRA, LoftQ and CorDA change the base weights before the training."""
_NAMES = "base_model.model."
_EMBEDDING = ".lora_embedding_A"
_PAIRS = {".lora_A.weight": ".lora_B.weight", _EMBEDDING: ".lora_embedding_B"}
_MERGE = "merge it in Python: PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…)"


def config(folder: Path) -> dict[str, Any]:
    """Return the adapter's settings. Raises StageError that names what can't be merged here."""
    try:
        with (folder / ADAPTER).open("rb") as file:
            found = dict(json.loads(file.read(_CONFIG_BYTES)).items())
        kind = found["peft_type"]
        if kind != "LORA":
            raise StageError(f"the adapter is of the type {str(kind)[:40]}, not LORA", fix=_MERGE)
        valid = type(found["r"]) is int and 0 < found["r"] < _MOST and abs(found["lora_alpha"]) < _MOST
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise StageError(f"{ADAPTER} is not the configuration of a LoRA adapter")
    odd = sorted(
        name
        for name, value in found.items()
        if value and name not in _USED | _WITHOUT_EFFECT and value not in _PLAIN.get(name, ())
    )
    if odd:
        said = ", ".join(f"{name}: {json.dumps(found[name])}"[:80] for name in odd[:3])
        raise StageError(f"the adapter was trained with {said}, which can't be merged here", fix=_MERGE)
    return found


def merge(settings: Mapping[str, Any], adapter: Mapping[str, Any], base: StateDict) -> StateDict:
    """Return the base weights with an adapter's changes: W + B·A·alpha/r, and its trained heads.

    Raises StageError that names the tensor for which the base has none of that name and shape.
    """
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    parts = {name.removeprefix(_NAMES): tensor for name, tensor in adapter.items()}
    seconds = {name: _second(name) for name in parts if _second(name)}
    changed = {_target(name, base): name for name in seconds}
    heads = {name: parts[name] for name in parts if name not in {*seconds, *seconds.values()}}
    for name, tensor in heads.items():
        if name not in base or base[name].shape != tensor.shape:
            raise _misfit(name)
    tied = {alias: names for names in ties.groups(base) for alias in names}
    made = spare.allocate({name: base[name] for name in changed})
    for name, first in changed.items():
        delta = _product(parts, first, seconds[first], settings).mul_(scale)
        if delta.shape != base[name].shape:
            raise _misfit(name)
        if first.endswith(_EMBEDDING):  # Of a linear layer, peft rounds the sum alone.
            delta = delta.to(base[name].dtype)
        made[name].copy_(base[name]).add_(delta)
    everywhere = {alias: made[name] for name in made for alias in tied.get(name, [name])}
    return StateDict({**base, **everywhere, **heads}, versions=base.versions, stripped=base.stripped)


def _second(name: str) -> str:
    """Return the name of the matrix that belongs to one, or nothing where it isn't a pair's first."""
    end = next((end for end in _PAIRS if name.endswith(end)), "")
    return name.removesuffix(end) + _PAIRS[end] if end else ""


def _target(name: str, base: Mapping[str, Any]) -> str:
    layer = name.partition(".lora_")[0]
    target = f"{layer}.weight"
    if target not in base:
        raise _misfit(target)
    return target


def _product(
    parts: Mapping[str, torch.Tensor], first: str, second: str, settings: Mapping[str, Any]
) -> torch.Tensor:
    """Return B·A as peft computes it, in float32."""
    if second not in parts or parts[first].dim() != 2 or parts[second].dim() != 2:
        raise StageError(f"the adapter's {first!r} and {second!r} are not the two matrices of a linear layer",
                         fix=_MERGE)  # fmt: skip
    a, b = parts[first], parts[second]
    if a.shape[0] != settings["r"] or b.shape[1] != settings["r"]:
        raise StageError(f"the adapter's {first!r} doesn't have the rank {settings['r']} of {ADAPTER}")
    product = b.float() @ a.float()
    return product.T if first.endswith(_EMBEDDING) or settings.get("fan_in_fan_out") else product


def _misfit(name: str) -> StageError:
    return StageError(f"the base weights have no {name!r} of the shape that the adapter was trained on",
                      fix="give the weights of the adapter's base model as the input `base`")  # fmt: skip
