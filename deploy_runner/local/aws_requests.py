"""Refuse requests as AWS does: by the ranges, patterns and values of its own service model.

botocore checks the minimums and leaves the rest to the service; moto checks next to nothing. Both carry
the model that says what the service takes, so the local AWS reads it there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

__all__ = ["check_requests", "violations"]


def check_requests(response: Any, service: str, refuse: Callable[[str], Exception]) -> None:
    """Patch one of moto's response classes so that it refuses what breaks its service's model."""
    original = response.call_action

    def call_action(self: Any) -> Any:
        from moto.core.responses import ActionResult

        wrong = list(violations(service, self._get_action(), _arguments(self)))
        if not wrong:
            return original(self)
        noun = "error" if len(wrong) == 1 else "errors"
        refusal = refuse(f"{len(wrong)} validation {noun} detected: {'; '.join(wrong)}")
        status, headers, body = self.serialized(ActionResult(refusal))
        return status, {**headers, "status": status}, body

    response.call_action = call_action


def _arguments(response: Any) -> dict[str, Any]:
    try:
        found = json.loads(response.body or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def violations(service: str, operation: str, arguments: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a call's arguments, in AWS's words."""
    model = _model(service)
    if operation in model.operation_names:
        shape = model.operation_model(operation).input_shape
        if shape is not None:
            yield from _check(shape, arguments, "")


@cache
def _model(service: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def _check(shape: Any, value: Any, place: str) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in shape.required_members:
            if name not in value:
                yield f"Value null at '{_inside(place, name)}' failed to satisfy constraint: " \
                      "Member must not be null"  # fmt: skip
        for name, member in value.items():
            if name in shape.members:
                yield from _check(shape.members[name], member, _inside(place, name))
    elif shape.type_name == "list" and isinstance(value, list):
        yield from _size(shape, len(value), value, place, what="length")
        for index, member in enumerate(value, start=1):
            yield from _check(shape.member, member, f"{place}.{index}.member")
    elif shape.type_name == "map" and isinstance(value, dict):
        yield from _size(shape, len(value), value, place, what="length")
        for key, member in value.items():
            yield from _check(shape.key, key, f"{place}.key")
            yield from _check(shape.value, member, f"{place}.{key}.member")
    elif shape.type_name == "string" and isinstance(value, str):
        yield from _size(shape, len(value), value, place, what="length")
        yield from _text(shape, value, place)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _size(shape, value, value, place, what="value")


def _inside(place: str, name: str) -> str:
    part = name[0].lower() + name[1:]
    return f"{place}.{part}" if place else part


def _size(shape: Any, size: float, value: Any, place: str, *, what: str) -> Iterator[str]:
    if size > shape.metadata.get("max", size):
        yield _broken(value, place, f"have {what} less than or equal to {shape.metadata['max']}")
    if size < shape.metadata.get("min", size):
        yield _broken(value, place, f"have {what} greater than or equal to {shape.metadata['min']}")


def _text(shape: Any, value: str, place: str) -> Iterator[str]:
    values = shape.metadata.get("enum", [value])
    if value not in values:
        yield _broken(value, place, f"satisfy enum value set: [{', '.join(values)}]")
    pattern = shape.metadata.get("pattern")
    if pattern and not _matches(pattern, value):
        yield _broken(value, place, f"satisfy regular expression pattern: {pattern}")


def _matches(pattern: str, value: str) -> bool:
    """Say whether all of a text matches; a pattern that only Java knows matches everything."""
    try:
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    except re.error:
        return True


def _broken(value: Any, place: str, rule: str) -> str:
    return f"Value '{value}' at '{place}' failed to satisfy constraint: Member must {rule}"
