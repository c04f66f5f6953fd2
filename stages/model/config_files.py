"""Read the arguments of a factory from the configuration file of the training."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError, first_line

__all__ = ["arguments"]

_MOST_BYTES = 8 << 20
_MOST_VALUES = 100_000


def arguments(factory: Callable[..., Any], config: Path | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a factory's keyword arguments: what the file says, and `kwargs` over it.

    A factory with a parameter `config` gets the whole file under that name. Raises StageError for a file
    that is no mapping of JSON, YAML or TOML, or holds what JSON can't.
    """
    if config is None:
        return dict(kwargs)
    said = _read(config)
    try:
        named = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        named = {}  # type: ignore[assignment]
    return {"config": said, **kwargs} if "config" in named else {**said, **kwargs}


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    import yaml

    if path.stat().st_size > _MOST_BYTES:
        raise StageError(f"the config has {path.stat().st_size} bytes, more than any configuration file")
    parse = {".json": json.loads, ".toml": tomllib.loads}.get(path.suffix, yaml.safe_load)
    try:
        said = parse(path.read_text("utf-8"))
        _require_few(said)
        json.dumps(said, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise StageError(
            f"the config can't be read: {first_line(error)}",
            fix="use JSON, YAML or TOML of plain numbers, texts, lists and mappings",
        ) from error
    if not isinstance(said, dict) or not all(isinstance(name, str) for name in said):
        raise StageError(f"the config is a {type(said).__name__}, not a mapping of names to values")
    return said


def _require_few(value: Any) -> None:
    """Raise ValueError for more values than anybody writes: aliases of YAML multiply."""
    pending, count = [value], 0
    while pending:
        inside = pending.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values")
        if isinstance(inside, dict):
            pending += inside.values()
        elif isinstance(inside, list):
            pending += inside
