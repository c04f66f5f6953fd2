"""Run one stage type in the current process, without a pipeline, to test it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pipeline.interface import code_references
from .sdk import Context, Stage
from .store.stat import sha256_file
from .usercode import loading

__all__ = ["StageRun", "run_stage"]


@dataclass(frozen=True, slots=True)
class StageRun:
    """The results of one stage: the paths of its outputs by name, its figures and its context."""

    outputs: Mapping[str, Path]
    figures: Mapping[str, Any]
    context: Context

    def __getitem__(self, output: str) -> Path:
        return self.outputs[output]


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Import as a worker does: a stage that tries the code in its outputs leaves no `__pycache__` there."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _digests(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, given in inputs.items():
        if isinstance(given, Mapping):
            found |= _digests(given, f"{name}/")
        elif isinstance(given, Path) and given.is_file():
            found[prefix + name] = sha256_file(given)
    return found


def run_stage(
    stage: type[Stage],
    folder: Path,
    *,
    inputs: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    outputs: Mapping[str, str] | None = None,
    project: Path | None = None,
    **context: Any,
) -> StageRun:
    """Validate `params` and `inputs` as a pipeline does, run the stage and return its results.

    Outputs and temporary files are written below `folder`. `outputs` names the outputs of a type that lets
    the pipeline name them. `project` is the folder that `Code` parameters are relative to. Further keyword
    arguments are attributes of the Context: `trust`, `target`, `secrets`, …
    """
    made, scratch = folder / "outputs", folder / "scratch"
    made.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    checked = stage.Params.model_validate_json(json.dumps(dict(params or {})))
    checked.check_inputs([name for name, given in (inputs or {}).items() if given is not None])
    files: dict[str, Path] = {}
    for path, code in code_references(checked):
        assert project is not None, f"{path[0]} needs project="
        files |= loading.import_closure(project, loading.split(code)[0]).files
    places = {name: made / field.default for name, field in stage.Outputs.model_fields.items()} | {
        name: made / path for name, path in (outputs or {}).items()
    }
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    context.setdefault("digests", _digests(inputs or {}))
    ctx = Context(
        stage=stage.uses,
        workdir=scratch,
        code_files=files,
        _load=lambda code: loading.load(code, files),
        **context,
    )
    with _no_bytecode():
        stage().run(ctx, checked, stage.Inputs(**(inputs or {})), stage.Outputs(**places))
    return StageRun({n: p for n, p in places.items() if p.exists()}, ctx.figures, ctx)
