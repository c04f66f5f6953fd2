"""The images of a dry run: build contexts among an action's inputs, where a local server can start them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ...store.cas import Store
from ...types import PathSource
from .action import Action, Project

__all__ = ["images_of"]

_DOCKERFILE = "Dockerfile"


def images_of(action: Action, project: Project, store: Store) -> Mapping[str, Path]:
    """Return the context that any image was built from; nothing where no input is one.

    An output of another stage is copied: a worker's own inputs may be visible to it alone.
    """
    from ...local.aws_fleets import ANY

    for name, artifact in action.decision.inputs.items():
        source = action.node.inputs[name]
        if artifact.kind != "folder":
            continue
        if isinstance(source, PathSource):
            folder = Path(project.root, source.path)
            if os.path.isfile(folder / _DOCKERFILE):
                return {ANY: folder}
        elif any(inside == _DOCKERFILE for _, inside, _, _ in store.pieces(artifact)):
            folder = action.folder / "context"
            store.materialise(artifact, folder)
            return {ANY: folder}
    return {}
