"""`init`: write a starting project around a checkpoint, one that runs at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from ..errors import UsageError
from ..store.files import write_atomic
from ..usercode.loading import split
from .options import Argument, Option, whole_numbers

__all__ = ["Init"]

_HEAD = """\
# deploy-runner run pipeline.yaml
version: 1
name: {name}

stages:
  weights:
    uses: checkpoint.state_dict
    inputs: {{checkpoint: {checkpoint}}}
"""

_MODEL = """
  model:
    uses: model.prepare
    inputs: {{weights: "${{{{ stages.weights.outputs.weights }}}}"}}
    with:
      factory: {factory}
      example: {{shape: {shape}}}

  onnx:
    uses: onnx.export
    inputs: {{model: "${{{{ stages.model.outputs.model }}}}"}}

  checked:
    uses: onnx.check
    inputs: {{model: "${{{{ stages.onnx.outputs.model }}}}"}}

  package:
    uses: package.sagemaker
    inputs:
      model: ${{{{ stages.onnx.outputs.model }}}}
"""

_HINT = """
# To continue, set the function that builds your nn.Module and the shape of one example:
#
#  model:
#    uses: model.prepare
#    inputs: {weights: "${{ stages.weights.outputs.weights }}"}
#    with:
#      factory: model.py:build
#      example: {shape: [1, 3, 224, 224]}
"""


class Init(NamedTuple):
    """Start a project from a checkpoint."""

    checkpoint: Annotated[str, Argument("the trained checkpoint")]
    folder: Annotated[str, Argument("target folder (default: the current one)")] = "."
    factory: Annotated[str | None, Option("the function that builds your nn.Module", "FILE.py:NAME")] = None
    shape: Annotated[
        Sequence[int] | None, Option("the shape of one example input", "1,3,224,224", whole_numbers)
    ] = None

    def __call__(self) -> int:
        """Write `pipeline.yaml` into the folder and print what to do next.

        A checkpoint outside of it is copied into it. With a factory (`model.py:build`, inside the folder)
        and a shape the pipeline continues to ONNX and a package. Raises UsageError where something is
        missing or a pipeline exists; then nothing is written.
        """
        source, project = Path(self.checkpoint), Path(self.folder)
        if not source.exists():
            raise UsageError(f"{self.checkpoint} does not exist")
        target = project / "pipeline.yaml"
        if target.exists():
            raise UsageError(f"{target} already exists", fix="choose another folder")
        if (self.factory is None) != (self.shape is None):
            raise UsageError("--factory and --shape require each other", fix="give both, or neither")
        if self.factory is not None:
            _require_factory(project, self.factory)
        inside = source.resolve().is_relative_to(project.resolve())
        place = source.resolve().relative_to(project.resolve()) if inside else Path(source.name)
        text = _HEAD.format(name=_name(project), checkpoint=json.dumps(place.as_posix()))
        if self.factory is not None and self.shape is not None:
            text += _MODEL.format(factory=json.dumps(self.factory), shape=json.dumps(list(self.shape)))
        else:
            text += _HINT
        project.mkdir(parents=True, exist_ok=True)
        if not inside:
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, project / place)
        if not (project / ".gitignore").exists():
            write_atomic(project / ".gitignore", b".deploy-runner/\n")
        write_atomic(target, text.encode())
        print(f"wrote {target}; now: deploy-runner run {target}")
        return 0


def _require_factory(project: Path, factory: str) -> None:
    try:
        path, _ = split(factory)
    except ValueError as error:
        raise UsageError(str(error), fix="e.g. --factory model.py:build") from None
    if not (project / path).is_file():
        raise UsageError(f"{project / path} does not exist", fix="the factory must be in the project")


def _name(project: Path) -> str:
    name = project.resolve().name
    return json.dumps(name if name else "model")
