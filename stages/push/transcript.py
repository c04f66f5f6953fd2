"""Record every change that a push makes, in order, without what differs between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Transcript:
    """A push's changes: objects, names and calls. Reads are not changes and are left out."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, call: str, **details: Any) -> None:
        """Note one call with what identifies it."""
        self._entries.append({"call": call, **details})

    @property
    def calls(self) -> int:
        """Return how many changes were made."""
        return len(self._entries)

    @property
    def changed(self) -> bool:
        """Say whether anything was changed."""
        return bool(self._entries)

    def write(self, path: Path, **result: Any) -> None:
        """Write the transcript with what is there in the end."""
        content = {"calls": self._entries, **result}
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", "utf-8")
