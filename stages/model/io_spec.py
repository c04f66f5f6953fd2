"""Complete what a pipeline says of raw input with what the model, the tokenizer and the labels say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError, closest, counted, first_line

from . import filling
from .bundles import Bundle, Port
from .io_params import Answer, Picture, Row, Text

__all__ = ["answer_spec", "fit_picture", "labels_of", "picture_spec", "read_json", "row_spec", "text_spec"]

_MOST_BYTES = 64 << 20
_SUM = 1e-3


def picture_spec(given: Picture, ports: Sequence[Port]) -> dict[str, Any]:
    """Return the specification of pictures for the model's input of pictures."""
    port = _picture_port(ports)
    layout = "CHW" if port.shape[1] in (1, 3) else "HWC"
    channels = port.shape[1 if layout == "CHW" else 3]
    mode = given.mode or ("L" if channels == 1 else "RGB")
    for name, values in (("mean", given.mean), ("std", given.std)):
        if values is not None and len(values) not in (1, channels):
            raise StageError(
                f"picture.{name} has {counted(len(values), 'value')}, "
                f"the model {counted(channels, 'channel')}"
            )
    return {
        "tensor": port.name, "mode": mode, "exif": given.exif, "background": given.background,
        "resize": _resize(given.resize), "interpolation": given.interpolation, "crop": _both(given.crop),
        "scale": {"divide": 255} if given.scale else None,
        "mean": _spread(given.mean, channels), "std": _spread(given.std, channels),
        "channels": given.channels, "layout": layout,
        "dtype": "uint8" if port.dtype == "uint8" else "float32", "max_pixels": given.max_pixels,
    }  # fmt: skip


def fit_picture(spec: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, Any]:
    """Return somebody else's specification with the name, layout and type of the model's input."""
    own = picture_spec(Picture(), ports)
    port = next(port for port in ports if port.name == own["tensor"])
    axes = (2, 3) if own["layout"] == "CHW" else (1, 2)
    fixed = [port.shape[axis] if axis not in port.dynamic else None for axis in axes]
    made = spec["crop"] or (spec["resize"] or {}).get("size")
    if made and any(size not in (None, got) for size, got in zip(fixed, made, strict=True)):
        said = f"the pictures are prepared to {made[0]}x{made[1]}, but the model takes {list(port.shape)}"
        raise StageError(said, fix="say in picture what the training did")
    return {**spec, **{key: own[key] for key in ("tensor", "layout", "dtype")}}


def _picture_port(ports: Sequence[Port]) -> Port:
    found = [p for p in ports if len(p.shape) == 4 and {p.shape[1], p.shape[3]} & {1, 3}]
    if len(found) != 1:
        said = f"{len(found)} of the model's inputs look like pictures of 1 or 3 channels"
        raise StageError(f"{said}: {', '.join(f'{p.name} {list(p.shape)}' for p in ports)}")
    return found[0]


def _resize(given: int | list[int] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    return {"shortest": given} if isinstance(given, int) else {"size": _both(given)}


def _both(given: int | list[int] | None) -> list[int] | None:
    if isinstance(given, list) and len(given) != 2:
        raise StageError("a size is [height, width]")
    return [given, given] if isinstance(given, int) else given


def _spread(values: list[float] | None, channels: int) -> list[float] | None:
    return values * channels if values is not None and len(values) == 1 else values


def text_spec(given: Text, tokenizer: Path, ports: Sequence[Port]) -> tuple[dict[str, Any], Path]:
    """Return the specification of texts, and the tokenizer.json."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise StageError(
            "the folder has no tokenizer.json",
            fix="save it once with AutoTokenizer.from_pretrained(…).save_pretrained(…), as a fast tokenizer",
        )
    known = _tokenizer(file)
    config = read_json(folder / "tokenizer_config.json") if tokenizer.is_dir() else {}
    names = _text_names(ports)
    port = next(p for p in ports if p.name == names["ids"])
    fixed = None if len(port.shape) < 2 or 1 in port.dynamic else port.shape[1]
    longest = given.max_length or fixed or _longest(config, folder)
    if fixed is not None and longest != fixed:
        raise StageError(
            f"text.max_length is {longest}, but the model takes {fixed} tokens, no more and no less"
        )
    token = _content(config.get("pad_token")) or next(
        (t for t in ("[PAD]", "<pad>", "<|pad|>") if known.token_to_id(t) is not None), None
    )
    pad = known.token_to_id(token) if token else None
    side = config.get("padding_side", "right")
    return {
        **names, "dtype": port.dtype, "max_length": longest, "truncation": given.truncation,
        "truncation_side": config.get("truncation_side", "right"),
        "padding": given.padding or ("longest" if fixed is None else "max_length"), "pad_to": given.pad_to,
        "padding_side": side if side in ("left", "right") else "right", "pad_id": pad or 0,
        "pad_token": token or "[PAD]", "pad_type": 0, "special_tokens": given.special_tokens,
        "max_characters": given.max_characters, "pairs": given.pairs,
    }, file  # fmt: skip


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    if file.stat().st_size > _MOST_BYTES:
        raise StageError("the tokenizer.json is larger than 64 MiB")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # Its library raises Exception itself.
        raise StageError(f"the tokenizer can't be read: {first_line(error)}") from error


def _text_names(ports: Sequence[Port]) -> dict[str, str | None]:
    whole = [port for port in ports if "int" in port.dtype and len(port.shape) == 2]
    masks = [p.name for p in ports if filling.called(p.name, p.dtype, len(p.shape)) in ("mask", "padding")]
    types = [p.name for p in whole if "type" in p.name]
    positions = [p.name for p in whole if filling.called(p.name, p.dtype, 2) == "positions"]
    ids = [p.name for p in whole if p.name not in (*masks, *types, *positions)]
    if len(ids) != 1:
        said = ", ".join(f"{p.name} {p.dtype} {list(p.shape)}" for p in ports)
        raise StageError(f"{len(ids)} of the model's inputs look like ids of tokens: {said}")
    if positions:
        raise StageError(f"the model takes {positions[0]!r}, which no tokenizer gives",
                         fix="use preprocess, or a model that counts positions itself")  # fmt: skip
    return {"ids": ids[0], "mask": next(iter(masks), None), "types": next(iter(types), None)}


def _longest(config: Mapping[str, Any], folder: Path) -> int:
    said = [config.get("model_max_length"), read_json(folder / "config.json").get("max_position_embeddings")]
    found = [int(n) for n in said if isinstance(n, int | float) and 0 < n < 1 << 20]
    if not found:
        raise StageError("nothing says how many tokens the model takes", fix="set text: {max_length: 512}")
    return min(found)


def _content(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def row_spec(given: Row, ports: Sequence[Port]) -> dict[str, Any]:
    """Return the specification of rows: which columns each of the model's inputs has."""
    names = [port.name for port in ports]
    columns, tensors = [], {}
    for column in given.columns:
        tensor = column.tensor or (names[0] if len(names) == 1 else None)
        if tensor not in names:
            said = f"row: the column {column.name!r} names no input of the model"
            raise StageError(said, fix=f"set its `tensor`: {', '.join(names)}")
        if column.kind == "category" and not column.vocabulary:
            raise StageError(f"row: the column {column.name!r} has no vocabulary")
        columns.append({**column.model_dump(), "tensor": tensor})
    for port in ports:
        mine = [column["name"] for column in columns if column["tensor"] == port.name]
        flat = len(port.shape) == 1
        width = 1 if flat else port.shape[1] if len(port.shape) == 2 else -1
        if len(mine) != width:
            said = f"row: {port.name!r} of shape {list(port.shape)} gets {counted(len(mine), 'column')}"
            raise StageError(said, fix="list every column once, in the order of the training")
        tensors[port.name] = {"dtype": port.dtype, "columns": mine, "shape": "each" if flat else "columns"}
    return {"columns": columns, "tensors": tensors}


def labels_of(file: Path) -> list[str | int]:
    """Return the classes' names: lines, a list of JSON, {"0": name, …}, or a config.json with id2label."""
    if file.suffix != ".json":
        try:
            return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise StageError("the labels are not UTF-8 text, one name a line") from None
    said = read_json(file)
    said = said.get("id2label", said) if isinstance(said, dict) else said
    if isinstance(said, dict):
        try:
            places = {int(place): name for place, name in said.items()}
        except ValueError:
            places = {}
            if all(isinstance(place, int) for place in said.values()):
                places = {place: name for name, place in said.items()}
        said = [places.get(place) for place in range(len(places))]
    if not isinstance(said, list) or not said or not all(isinstance(name, str | int) for name in said):
        raise StageError('the labels are neither a list of names nor {"0": name, "1": name, …}')
    return said


def answer_spec(
    given: Answer, bundle: Bundle, labels: list[str | int] | None, ids: str | None
) -> dict[str, Any]:
    """Return the specification of the answer; `ids` names the mask of a text's tokens."""
    outputs = {port.name: port for port in bundle.outputs}
    named = {key: getattr(given, key) for key in ("output", "boxes", "classes", "scores")}
    for key, name in named.items():
        if name is not None and name not in outputs:
            said = f"answer.{key}: the model has no output {name!r}, only {', '.join(outputs)}"
            raise StageError(said, fix=closest(name, outputs))
    port = outputs[given.output or bundle.outputs[0].name]
    kind = given.kind or _kind_of(port)
    labels = given.labels or labels
    spec: dict[str, Any] = {"kind": kind, "output": port.name, "labels": labels, "top": given.top,
                            "threshold": given.threshold}  # fmt: skip
    if kind in ("classes", "labels"):
        count = max(2, port.shape[1]) if len(port.shape) > 1 else 2
        if labels is not None and len(labels) != count:
            raise StageError(
                f"{port.name!r} has {count} classes, but {counted(len(labels), 'label')} for them"
            )
        usual = "sigmoid" if kind == "labels" else "softmax"
        spec["activation"] = given.activation or ("none" if _adds_up(bundle, port.name) else usual)
    if kind == "embedding":
        spec |= {"pooling": given.pooling, "normalize": given.normalize, "mask": ids}
    if kind == "boxes":
        if None in (given.boxes, given.classes, given.scores):
            raise StageError("answer: boxes needs the names of three outputs",
                             fix=f"set boxes, classes and scores: {', '.join(outputs)}")  # fmt: skip
        spec |= {key: named[key] for key in ("boxes", "classes", "scores")}
    return spec


def _kind_of(port: Port) -> str:
    if len(port.shape) == 2 and port.shape[1] > 1:
        return "classes"
    if len(port.shape) in (1, 2):
        return "number"
    raise StageError(
        f"the output {port.name!r} {list(port.shape)} may mean several things",
        fix="set answer: {kind: mask}, embedding, boxes, …, or postprocess",
    )


def _adds_up(bundle: Bundle, name: str) -> bool:
    """Say whether an output is of probabilities already, on every reference case."""
    import numpy as np

    rows = [case.outputs[name].astype(np.float64) for case in bundle.cases]
    return all((r >= 0).all() and np.abs(r.sum(-1) - 1).max(initial=0) < _SUM for r in rows)


def read_json(file: Path) -> Any:
    """Return what a file of JSON holds, {} where there is none. Raises StageError."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise StageError(f"{file.name} is not JSON: {first_line(error)}") from None
