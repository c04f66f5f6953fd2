"""`stages` and `schema`: the stage types, for people and for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

from ..errors import UsageError, closest
from .options import Argument, JsonSwitch

__all__ = ["Schema", "Stages"]


class Stages(NamedTuple):
    """List the stage types, or describe one."""

    type: Annotated[str | None, Argument(metavar="TYPE")] = None
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print a line for each type, or all about one."""
        from ..pipeline.schema import describe_stage_types

        described = describe_stage_types(Path.cwd())
        if self.type:
            found = [d for d in described if d["uses"] == self.type]
            if not found:
                known = (str(d["uses"]) for d in described)
                fix = closest(self.type, known) or "`deploy-runner stages` lists them"
                raise UsageError(f"there is no stage type {self.type!r}", fix=fix)
            described = found
        if self.json:
            print(json.dumps(described, ensure_ascii=False))
        elif self.type:
            from ..registry import shared_example
            from ..report.stage_types import describe

            print(describe(described[0], shared_example()))
        else:
            width = max(len(str(d["uses"])) for d in described)
            for entry in described:
                print(f"{entry['uses']:<{width}}  {entry['summary']}")
        return 0


class Schema(NamedTuple):
    """Print the JSON Schema of a pipeline, for editors."""

    def __call__(self) -> int:
        """Print it for the stage types that are found from here."""
        from ..pipeline.schema import json_schema

        print(json.dumps(json_schema(Path.cwd()), indent=2, ensure_ascii=False))
        return 0
