"""What lies in a trainer's folder: which file has the weights, and how their shards are put together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import StageError

Kind = Literal["file", "sharded", "distributed", "adapter"]

ADAPTER = "adapter_config.json"
METADATA = ".metadata"
"""Of a folder that torch.distributed.checkpoint wrote."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
_WEIGHTS = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors",
    "pytorch_model.bin", "diffusion_pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
_STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state_dict|training_args|rng_state|random_states)\w*\.\w+"
)
"""What the Hugging Face Trainer and accelerate write beside the weights: pickles that are never read."""
_LATEST = "latest"
_MOST_NAME_BYTES = 200
_INDEX_BYTES = 64 << 20
_ZERO_3 = "zero_pp_rank_*_model_states.pt"
_STATES = "mp_rank_*_model_states.pt"


def find(folder: Path) -> tuple[Kind, Path]:
    """Return how the folder holds weights, and the file (of shards: their index) or folder to read.

    safetensors go before pickles. Raises StageError that says what is there instead.
    """
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        indices = sorted(folder.glob(pattern))
        if len(indices) > 1:
            names = ", ".join(index.name for index in indices)
            raise StageError(f"the folder has several checkpoints: {names}", fix="keep one of them")
        for index in indices:
            return "sharded", index
        for name in _WEIGHTS:
            if name.endswith(pattern.split(".")[1]) and (folder / name).is_file():
                return "file", folder / name
    if (folder / ADAPTER).is_file():
        return "adapter", folder
    if (folder / METADATA).is_file():
        return "distributed", folder
    deepspeed = _deepspeed(folder)
    if deepspeed is not None:
        return "file", deepspeed
    files = _files(folder)
    if len(files) == 1:
        return "file", files[0]
    raise _nothing(folder, files)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not _STATE.fullmatch(p.name))


def _nothing(folder: Path, files: list[Path]) -> StageError:
    if files:
        names = ", ".join(path.name for path in files[:3])
        return StageError(f"{folder.name} is a folder with several files that may be checkpoints: {names}",
                          fix="use one of them")  # fmt: skip
    inner = [f"{p.name}/" for p in sorted(folder.iterdir()) if p.is_dir() and _has_weights(p)]
    fix = (
        f"use the folder inside it: {', '.join(inner[:3])}" if inner else "use a checkpoint's file or folder"
    )
    return StageError(f"{folder.name} is a folder without a checkpoint", fix=fix)


def _has_weights(folder: Path) -> bool:
    known = (METADATA, ADAPTER, _LATEST)
    return any((folder / name).is_file() for name in known) or bool(_files(folder))


def _deepspeed(folder: Path) -> Path | None:
    """Return DeepSpeed's file of the weights: of the newest step, or of the step whose folder it is."""
    if (folder / _LATEST).is_file():
        step = (folder / _LATEST).read_bytes()[:_MOST_NAME_BYTES].decode("utf-8", "replace").strip()
        if not is_name(step) or not (folder / step).is_dir():
            raise StageError(f"`{_LATEST}` names the folder {step!r}, which is not in {folder.name}",
                             fix="copy the folder of the step, too")  # fmt: skip
        folder /= step
    states = sorted(folder.glob(_STATES))
    if any(folder.glob(_ZERO_3)):
        raise StageError("the folder is a DeepSpeed checkpoint of ZeRO stage 3: its weights are in the "
                         "optimizer's partitions",
                         fix="where DeepSpeed is installed, run `python zero_to_fp32.py . weights "
                         "--safe_serialization` in it, and use the folder `weights`")  # fmt: skip
    if any(folder.glob("layer_*-model_*states.pt")) or len(states) > 1:
        raise StageError("the folder is a DeepSpeed checkpoint, split by pipeline or tensor parallelism",
                         fix="merge it with DeepSpeed's universal checkpoint tools first")  # fmt: skip
    return states[0] if states else None


def is_name(text: Any) -> bool:
    """Say whether a text is the name of something in a folder, and not a path that leads elsewhere."""
    return isinstance(text, str) and text not in ("", ".", "..") and "/" not in text and "\0" not in text


def read_sharded(index: Path, read_shard: Callable[[Path], Any]) -> dict[str, Any]:
    """Return the tensors that an index lists, each from its shard beside the index."""
    folder = index.parent
    try:
        with index.open("rb") as file:
            places = dict(json.loads(file.read(_INDEX_BYTES))["weight_map"].items())
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise StageError(f"{index.name} is not an index of shards") from None
    found: dict[str, Any] = {}
    for name in shards:
        if not is_name(name) or not (folder / name).is_file():
            raise StageError(f"{index.name} lists the shard {name!r}, which is not in the folder",
                             fix="copy every shard")  # fmt: skip
        found[name] = read_shard(folder / name)
    for tensor, shard in places.items():
        if not isinstance(found[shard], dict) or tensor not in found[shard]:
            raise StageError(f"the tensor {tensor!r} of {index.name} is not in its shard {shard}",
                             fix="copy the index and the shards of the same checkpoint")  # fmt: skip
    return {tensor: found[shard][tensor] for tensor, shard in places.items()}
