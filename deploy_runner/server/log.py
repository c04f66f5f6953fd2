"""One line on standard error for each event: as JSON, or to be read."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

__all__ = ["Log"]


class Log:
    """Writes events with their details; `always` are those of all."""

    def __init__(self, *, as_json: bool, **always: Any) -> None:
        self._as_json, self._always = as_json, always

    def __call__(self, event: str, **details: Any) -> None:
        """Write one event."""
        details = self._always | details
        if self._as_json:
            line = json.dumps({"time": round(time.time(), 3), "event": event, **details}, ensure_ascii=False)
        else:
            line = " ".join([event, *(f"{k}={_shown(v)}" for k, v in details.items())])
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _shown(value: Any) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text
