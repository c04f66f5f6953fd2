"""All files of a repository, from what the stage is given, with the card and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import Context, StageError

from ...model import bundles
from ...model.opened_io import read_spec
from . import layout, raw_io
from .card import Card, read_reports
from .content import MANIFEST, Wanted, describe, manifest
from .placed import Placed, makers

__all__ = ["CARD", "assemble"]

CARD = "README.md"


def assemble(ctx: Context, params: Any, inputs: Any, repo: str) -> dict[str, Wanted]:
    """Return what the repository is to hold, by path. Raises StageError where that is nothing."""
    bundle = bundles.load_bundle(inputs.reference) if inputs.reference else None
    placed = layout.onnx_files(inputs.models or {}, ctx.workdir)
    if inputs.weights is not None:
        placed["model.safetensors"] = Placed(inputs.weights, "weights")
    io = read_spec(inputs.io) if inputs.io else None
    if bundle is not None or io is not None:
        placed["config.json"] = Placed(layout.config(bundle, raw_io.labels(io), ctx.workdir))
    if inputs.io is not None:
        placed |= raw_io.files(inputs.io)
    placed |= layout.further_files(inputs.files or {})
    if not placed:
        raise StageError("there is nothing to publish", fix="set weights, models or files")
    known = {
        file.path: ctx.digests.get(file.given, "") for file in placed.values() if _is_whole(file, inputs)
    }
    files = describe({path: file.path for path, file in placed.items()}, known)
    if CARD not in files:
        card = Card(
            repo, files, read_reports(inputs.reports or {}), _makers(ctx, placed), bundle, ctx.lineage,
            params.license, params.language, params.tags, params.pipeline_tag or raw_io.task(io),
            params.dataset, _loaded(params), io,
        )  # fmt: skip
        files |= _written(ctx, CARD, card.text().encode())
    return files | _written(ctx, MANIFEST, manifest(files))


def _is_whole(file: Placed, inputs: Any) -> bool:
    """Say whether a file is an input itself, whose digest is known, not one of an input's folder."""
    group, _, name = file.given.partition("/")
    given = getattr(inputs, group) if group else None
    return file.path == (given.get(name) if isinstance(given, Mapping) else given)


def _makers(ctx: Context, placed: Mapping[str, Placed]) -> dict[str, str]:
    return makers(placed, ctx.lineage, ctx.digests, f"{ctx.stage} (`push.hub`)")


def _loaded(params: Any) -> str | None:
    """Return the revision that the card's snippets name: the tag, or a branch that isn't main."""
    return params.tag or (params.revision if params.revision != "main" else None)


def _written(ctx: Context, name: str, data: bytes) -> dict[str, Wanted]:
    path: Path = ctx.workdir / name
    path.write_bytes(data)
    return describe({name: path}, {})
