"""Two steps of the pipeline: take the model out of the installed package, and files to judge it by."""

from __future__ import annotations

import json
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import magika
import numpy as np

from deploy_runner.sdk import Context, StageError

Paths = dict[str, Path]

_PLACE = Path(magika.__file__).parent / "models/standard_v3_3"
_KINDS = {
    ".c": "c", ".csv": "csv", ".gif": "gif", ".html": "html", ".js": "javascript", ".json": "json",
    ".md": "markdown", ".npz": "npz", ".pdf": "pdf", ".png": "png", ".py": "python", ".rst": "rst",
    ".svg": "svg", ".toml": "toml", ".ttf": "ttf", ".wav": "wav", ".xml": "xml", ".yaml": "yaml",
}  # fmt: skip
"""What a file's ending says, in the model's words."""
_PACKAGES = ("matplotlib", "numpy", "onnx", "sklearn", "torch/include")
_OF_A_KIND, _SMALLEST = 30, 256


def take(ctx: Context, inputs: Paths, outputs: Paths) -> None:
    """Copy the model; its licence and its makers are in the figures."""
    shutil.copyfile(_PLACE / "model.onnx", outputs["model"])
    ctx.figure("from", f"magika {magika.__version__}")


def collect(ctx: Context, inputs: Paths, outputs: Paths) -> None:
    """Write what the model takes for installed files: half are samples, the others have their kinds."""
    config = json.loads((_PLACE / "config.min.json").read_text())
    rows, kinds = [], []
    for path in _files():
        kind = _KINDS.get(path.suffix)
        if kind and kinds.count(kind) < _OF_A_KIND and len(content := path.read_bytes()) >= _SMALLEST:
            rows.append(_row(content, config))
            kinds.append(kind)
    if len(rows) < 100:
        raise StageError(f"only {len(rows)} files of known kinds are installed", fix="pip install matplotlib")
    x, y = np.array(rows, np.int32), np.array([config["target_labels_space"].index(kind) for kind in kinds])
    np.savez_compressed(outputs["samples"], bytes=x[::2])
    np.savez_compressed(outputs["heldout"], bytes=x[1::2], y=y[1::2])
    ctx.figure("files", len(rows))
    ctx.figure("kinds", len(set(kinds)))


def _files() -> Iterator[Path]:
    """Yield the files of packages that the pipeline needs anyway, in an order that is the same each time."""
    found = [path for name in _PACKAGES for path in Path(sysconfig.get_path("purelib"), name).rglob("*.*")]
    yield from random.Random(0).sample(sorted(found), len(found))


def _row(content: bytes, config: dict[str, int]) -> list[int]:
    """Return the first and the last bytes of a file as the package gives them to the model."""
    block, padding = config["block_size"], config["padding_token"]
    first = content[:block].lstrip()[: config["beg_size"]]
    last = content[-block:].rstrip()[-config["end_size"] :]
    begin = [*first, *[padding] * (config["beg_size"] - len(first))]
    return [*begin, *[padding] * (config["end_size"] - len(last)), *last]
