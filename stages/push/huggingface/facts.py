"""What a card is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...model.bundles import Bundle
from . import pretrained, raw_io
from .content import Wanted

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a repository. `revision` is what the snippets load, `lineage` what the run made before.

    `makers` names the stage that made each file, `io` is the io.json of what takes raw input, `config` the
    config.json.
    """

    repo: str
    files: Mapping[str, Wanted]
    reports: Mapping[str, Mapping[str, Any]]
    makers: Mapping[str, str] = field(default_factory=dict)
    bundle: Bundle | None = None
    lineage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    license: str = "other"
    language: str | None = None
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    dataset: str = "held-out samples"
    revision: str | None = None
    io: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[str] = ()

    @property
    def task(self) -> str | None:
        """Return the Hub's task: what was said, else that of the raw input, else of the architecture."""
        if self.pipeline_tag or (read := raw_io.task(self.io)):
            return self.pipeline_tag or read
        if "modules.json" in self.files:
            return "sentence-similarity"
        kind = pretrained.kind_of(self.config)
        return (kind.task if kind else "") or None

    @property
    def mixin(self) -> bool:
        """Say whether the model's class is one of huggingface_hub's mixins."""
        return self.bundle is not None and self.bundle.hub_config is not None
