"""What an Inference Endpoint needs of a repository: handler.py, and the code and the description it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy_runner.sdk import StageError, closest

from ...package import entry_points, packed, raw
from . import layout
from .placed import Placed

__all__ = ["files"]


def files(
    name: str, models: Mapping[str, Path], reference: Path | None, io: Path | None, workdir: Path
) -> dict[str, Placed]:
    """Return the files by which an endpoint runs the model of this name. Raises StageError for none such."""
    if name not in models:
        raise StageError(f"`handler` names the model {name!r}, which is not among `models`",
                         fix=closest(name, models) or ", ".join(models))  # fmt: skip
    from . import endpoint_handler

    _, described = packed.model_files(models[name], reference)
    described["file"] = layout.onnx_path(name)
    written = {
        "model.json": json.dumps(described, indent=2, sort_keys=True) + "\n",
        "requirements.txt": "".join(f"{line}\n" for line in _requirements(io)),
    }
    placed = {"handler.py": Placed(Path(endpoint_handler.__file__))}
    placed |= {path: Placed(file) for path, file in entry_points.built_in().items()}
    for path, text in written.items():
        (workdir / path).write_text(text, "utf-8")
        placed[path] = Placed(workdir / path)
    members = {path: file for path, file in raw.members(io).items() if path.startswith("code/")}
    return placed | {path: Placed(file) for path, file in members.items()}


def _requirements(io: Path | None) -> list[str]:
    """Return what is installed over the endpoint's image.

    That has numpy, Pillow, tokenizers and what reads sounds in the releases that its transformers needs: with
    another tokenizers its server doesn't start. So only onnxruntime has a version.
    """
    try:
        pinned = [f"onnxruntime=={version('onnxruntime')}"]
    except PackageNotFoundError:
        pinned = ["onnxruntime"]
    return pinned + [name for name in raw.libraries(io) if name != raw.FORMS] + raw.own_requirements(io)
