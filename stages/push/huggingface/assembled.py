"""All files of a repository, from what the stage is given, with the card and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import Context, StageError

from ...model import bundles, tensor_files
from ...model.opened_io import read_spec
from . import card, configured, endpoint, layout, metadata, preprocessors, pretrained, raw_io
from .card import read_reports
from .content import MANIFEST, Wanted, describe, manifest
from .facts import Facts
from .placed import Placed, makers

__all__ = ["CARD", "assemble"]

CARD = "README.md"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def assemble(ctx: Context, params: Any, inputs: Any, repo: str) -> dict[str, Wanted]:
    """Return what the repository is to hold, by path. Raises StageError where that is nothing."""
    bundle = bundles.load_bundle(inputs.reference) if inputs.reference else None
    io = read_spec(inputs.io) if inputs.io else None
    reports = read_reports(inputs.reports or {})
    placed = _placed(ctx, inputs, bundle) | _read_by(ctx, io)
    if inputs.folder is not None:
        placed |= pretrained.files(inputs.folder, ctx.workdir)
    own = pretrained.config(inputs.folder) if inputs.folder else configured.own(bundle)
    config = configured.composed(own, bundle, io, placed)
    if bundle is not None or io is not None or inputs.folder is not None:
        placed[_CONFIG] = Placed(_write(ctx, _CONFIG, configured.text(config).encode()))
    if params.handler is not None:
        placed |= endpoint.files(
            params.handler, inputs.models or {}, inputs.reference, inputs.io, ctx.workdir
        )
    if params.benchmark is not None:
        path, text = metadata.eval_results(params.benchmark, reports)
        placed[path] = Placed(_write(ctx, "eval_results.yaml", text))
    placed |= layout.further_files(inputs.files or {})
    if not placed:
        raise StageError("there is nothing to publish", fix="set weights, models or files")
    files = describe({path: file.path for path, file in placed.items()}, _known(ctx, inputs, placed))
    if CARD not in files:
        if _CONFIG in (inputs.files or {}):
            config = configured.read(placed[_CONFIG].path)
        facts = Facts(
            repo, files, reports, _makers(ctx, placed), bundle, ctx.lineage, io=io, config=config,
            license=params.license, language=params.language, tags=params.tags, examples=params.examples,
            pipeline_tag=params.pipeline_tag, dataset=params.dataset, revision=_loaded(params),
        )  # fmt: skip
        files |= describe({CARD: _write(ctx, CARD, card.text(facts).encode())}, {})
    return files | describe({MANIFEST: _write(ctx, MANIFEST, manifest(files))}, {})


def _placed(ctx: Context, inputs: Any, bundle: bundles.Bundle | None) -> dict[str, Placed]:
    """Return the files of the inputs that have their own names in a repository."""
    placed = layout.onnx_files(inputs.models or {}, ctx.workdir)
    if inputs.weights is not None:
        if inputs.folder is not None and any(inputs.folder.glob("*.safetensors")):
            raise StageError("`weights` and `folder` both have weights", fix="leave `weights` out")
        _refuse_other_names(inputs.weights, bundle)
        placed[_WEIGHTS] = Placed(inputs.weights, "weights")
    if inputs.io is not None:
        placed |= raw_io.files(inputs.io)
    return placed


def _read_by(ctx: Context, io: Mapping[str, Any] | None) -> dict[str, Placed]:
    """Return what clients read texts and pictures by, where an io declares how."""
    found = preprocessors.written(io) if io is not None else {}
    return {path: Placed(_write(ctx, path, configured.text(said).encode())) for path, said in found.items()}


def _refuse_other_names(weights: Path, bundle: bundles.Bundle | None) -> None:
    """Raise StageError for weights that a mixin's from_pretrained would leave out in silence."""
    if bundle is None or bundle.hub_config is None:
        return
    given, own = (tensor_files.names(path) for path in (weights, bundle.folder / "weights.safetensors"))
    if given != own:
        name = min(given ^ own)
        raise StageError(
            f"`weights` and the model of `reference` don't have the same names, e.g. {name}: the class's "
            "from_pretrained() would leave layers untrained, and say nothing",
            fix="set `strip_prefix` on checkpoint.state_dict, so that the names are the model's own",
        )


def _known(ctx: Context, inputs: Any, placed: Mapping[str, Placed]) -> dict[Path, str]:
    """Return the digests of what is an input itself, which the runner has computed already."""
    found = {}
    for file in placed.values():
        group, _, name = file.given.partition("/")
        given = getattr(inputs, group) if group else None
        if file.path == (given.get(name) if isinstance(given, Mapping) else given):
            found[file.path] = ctx.digests.get(file.given, "")
    return found


def _makers(ctx: Context, placed: Mapping[str, Placed]) -> dict[str, str]:
    return makers(placed, ctx.lineage, ctx.digests, f"{ctx.stage} (`push.hub`)")


def _loaded(params: Any) -> str | None:
    """Return the revision that the card's snippets name: the tag, or a branch that isn't main."""
    return params.tag or (params.revision if params.revision != "main" else None)


def _write(ctx: Context, name: str, data: bytes) -> Path:
    path: Path = ctx.workdir / name
    path.write_bytes(data)
    return path
