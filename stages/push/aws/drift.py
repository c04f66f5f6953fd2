"""Settings as they are wanted beside what AWS has.

AWS adds members of its own to what it was given, promises no order of a list, and has floats of 32 bits:
only what is wanted is compared, in any order, to six digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from deploy_runner.sdk import ConflictError, Finding

__all__ = ["differs", "require_same", "rows"]

_NONE = "none"


def rows(names: Iterable[str], wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Finding]:
    """Return a finding for each of these settings that is wanted or found."""
    findings = []
    for name in names:
        want, there = _ordered(wanted.get(name)), _ordered(found.get(name))
        if want or there:
            findings.append(Finding(name, _shown(want), _shown(_asked_for(there, want))))
    return findings


def require_same(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ConflictError where something that exists by this name is another than what is wanted."""
    for row in rows(wanted, wanted, found):
        if not row.in_sync:
            raise ConflictError(f"{what} already exists with {row.what} {row.found}, not {row.wanted}")


def differs(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Say whether something wanted was found otherwise, or not at all."""
    return not all(row.in_sync for row in rows(wanted, wanted, found))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _ordered(member) for name, member in value.items()}
    if isinstance(value, list):
        return sorted((_ordered(member) for member in value), key=repr)
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.6g}")
    return value


def _asked_for(found: Any, wanted: Any) -> Any:
    """Return what was found without the members that nobody asked for."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return {name: _asked_for(found[name], wanted[name]) for name in wanted if name in found}
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [_asked_for(*pair) for pair in zip(found, wanted, strict=True)]
    return found


def _shown(value: Any) -> str:
    if not value:
        return _NONE
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else str(value)
