"""The pydantic models of a pipeline's structure, and the wording of what doesn't fit them."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from ..errors import Problem, closest
from ..types import Json, Mark
from .loader import Node

__all__ = [
    "CacheSpec",
    "ExecutorSpec",
    "PipelineSpec",
    "ResourcesSpec",
    "StageSpec",
    "TargetSpec",
    "find_mark",
    "parse_duration",
    "parse_size",
    "problems_of",
]

STAGE_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")

_UNITS_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
                "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
_UNITS_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(ms|s|m|h|d)\s*")
_SHOWN = 80
_MOST_DETAILS = 1000


def parse_size(value: str | int) -> int:
    """Return bytes from `512MiB`, `2 GB` or a number. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)", str(value).strip())
    unit = found.group(2).upper() if found else ""
    if not found or unit not in _UNITS_BYTES:
        raise ValueError(f"{_cut(value)} is not a size such as 512MiB or 2GB")
    return int(float(found.group(1)) * _UNITS_BYTES[unit])


def parse_duration(value: str | int | float) -> float:
    """Return seconds from `90s`, `1h30m` or a number. Raises ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text, at, seconds = str(value).strip(), 0, 0.0
    while at < len(text) or not text:
        part = _DURATION.match(text, at)
        if part is None:
            raise ValueError(f"{_cut(value)} is not a duration such as 90s or 1h30m")
        seconds += float(part[1]) * _UNITS_SECONDS[part[2]]
        at = part.end()
    return seconds


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ResourcesSpec(_Model):
    """What a stage may use."""

    cpu: int = Field(1, ge=1, description="CPU cores")
    memory: str | int = Field(0, description="memory, e.g. 2GiB; 0: no limit")
    gpu: int = Field(0, ge=0, description="GPUs that the stage gets for itself")
    custom: dict[str, float | int] = Field(
        default={}, description="other resources of a cluster's machines by name, e.g. {a100: 1}"
    )


class ExecutorSpec(_Model):
    """Where stages run."""

    name: Literal["local", "ray"] = Field(
        "local", description="local: on this machine; ray: on a Ray cluster"
    )
    address: str = Field(
        "", description="the cluster, e.g. ray://head:10001; empty: Ray is started on this machine"
    )
    autoscaling: bool = Field(
        False, description="the cluster adds machines by itself: wait for one that a stage needs"
    )


class TargetSpec(BaseModel):
    """Where pushes go. Members other than name and live belong to the push stages."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: str = Field("dry-run", description="dry-run, staging, production, …")
    live: bool = Field(False, description="true: a real remote; false: local servers of a dry run")


class CacheSpec(_Model):
    """A cache that several machines share."""

    remote: str = Field(
        "", description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder"
    )
    push: bool = Field(False, description="write what is made to it; false: read only")
    required: bool = Field(False, description="fail where it can't be used; false: continue without it")
    public_keys: list[str] = Field(
        default=[], description="the keys whose records count; `cache status` prints the one of a machine"
    )
    timeout: str | int | float = Field(
        "10s", description="the limit of a request, and of a transfer in which nothing moves"
    )

    @field_validator("remote")
    @classmethod
    def _is_address(cls, remote: str) -> str:
        if remote and not re.match(r"(s3|gs|az)://[^/\s]|file:///|.*\$\{\{", remote):
            raise ValueError("it is not s3://…, gs://…, az://… or file:///…")
        return remote

    @field_validator("public_keys")
    @classmethod
    def _are_keys(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if not re.fullmatch(r"ed25519:[A-Za-z0-9+/]{43}=", key):
                raise ValueError(f"{key!r} is not a key as `deploy-runner cache status` prints it")
        return keys

    @field_validator("timeout")
    @classmethod
    def _is_duration(cls, timeout: str | int | float) -> str | int | float:
        if parse_duration(timeout) <= 0:
            raise ValueError("it must be more than 0")
        return timeout


class StageSpec(_Model):
    """One stage of the pipeline."""

    uses: str = Field(description="the stage type, e.g. onnx.export")
    inputs: dict[str, Any] = Field(default={}, description="paths or outputs of other stages")
    with_: dict[str, Any] = Field(default={}, alias="with", description="parameters")
    outputs: dict[str, str] = Field(
        default={}, description="names and paths, for stage types whose outputs you name"
    )
    needs: list[str] = Field(default=[], description="stages that must finish first")
    matrix: dict[str, Any] | str = Field(
        default={},
        description="one instance of the stage for each combination of values; `include` and `exclude` as in "
        "GitHub Actions",
    )
    max_parallel: int | None = Field(
        None, ge=1, description="how many instances of a matrix run at the same time; default: no limit"
    )
    env: list[str] = Field(default=[], description="environment variables that the stage receives")
    resources: ResourcesSpec = Field(default=ResourcesSpec(), description="resource limits")
    timeout: str | int | float = Field(0, description="e.g. 10m; 0: no limit")
    trust: bool = Field(False, description="allow code inside the input: pickle, TorchScript, .pt2")


class PipelineSpec(_Model):
    """A pipeline."""

    version: Literal[1] = Field(description="the version of this format")
    name: str = Field(description="the pipeline's name")
    vars: dict[str, Any] = Field(default={}, description="values for ${{ vars.NAME }}")
    env: dict[str, str | None] = Field(
        default={}, description="environment variables with their defaults; null: required"
    )
    target: TargetSpec = Field(default=TargetSpec(), description="where pushes go")
    cache: CacheSpec = Field(default=CacheSpec(), description="a cache that several machines share")
    executor: ExecutorSpec = Field(default=ExecutorSpec(), description="where stages run")
    max_instances: int = Field(
        10_000,
        ge=1,
        description="the most stages that the pipeline may have, the instances of matrices included",
    )
    stages: dict[str, StageSpec] = Field(description="the stages by name")


def find_mark(node: Node, path: Sequence[str | int], *, key: bool = False) -> Mark:
    """Return the place of a value in a tree, as deep as the path can be followed.

    With `key` it is the place of the last name itself, where that is a mapping's key.
    """
    mark = node.mark
    for index, part in enumerate(path):
        children = node.value
        if isinstance(children, dict) and part in children:
            last = index == len(path) - 1
            mark = node.keys.get(str(part), children[part].mark) if key and last else children[part].mark
            node = children[part]
        elif isinstance(children, list) and isinstance(part, int) and part < len(children):
            node = children[part]
            mark = node.mark
        else:
            break
    return mark


def problems_of(error: ValidationError, node: Node, what: str, known: Mapping[str, Any]) -> list[Problem]:
    """Return one problem an error of pydantic: `what` names the thing, `known` its members."""
    problems: dict[tuple[str, int, int], Problem] = {}
    for detail in error.errors(include_url=False)[:_MOST_DETAILS]:
        unknown = detail["type"] == "extra_forbidden"
        place = _followable(node, detail["loc"])
        mark = find_mark(node, place, key=unknown)
        if detail["type"] == "missing":
            place = [*place, detail["loc"][-1]]
        message, fix = _sentence(detail, place, what, known)
        # A union gives one error a member: the first says enough.
        problems.setdefault((mark.file, mark.line, mark.column), Problem(
            message, mark.file, mark.line, mark.column, fix))  # fmt: skip
    return list(problems.values())


def _followable(node: Node, loc: Sequence[str | int]) -> list[str | int]:
    """Drop the parts of pydantic's path that name a union's member, not a part of the data."""
    path: list[str | int] = []
    current: Any = node
    for part in loc:
        children = current.value if isinstance(current, Node) else None
        inside = isinstance(children, list) and isinstance(part, int) and part < len(children)
        if inside or (isinstance(children, dict) and part in children):
            current = children[part]  # type: ignore[index]
            path.append(part)
    return path


def _sentence(
    detail: ErrorDetails, place: Sequence[str | int], what: str, known: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the sentence about what is at a place of the data, and what to write instead."""
    loc = [str(part) for part in place]
    name = ".".join(loc)
    if detail["type"] == "extra_forbidden":
        members = list(_members(known, loc[:-1]))
        listed = f"valid keys: {', '.join(members)}" if members else ""
        return f"{what} has no {name!r}", closest(loc[-1], members) or listed
    if detail["type"] == "missing":
        meaning = getattr(known.get(loc[0]), "description", None) if len(loc) == 1 else None
        return f"{what} needs {name!r}" + (f": {meaning}" if meaning else ""), ""
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):
        said = detail["msg"].removeprefix("Value error, ")
        return f"{what}: {name!r}: {said}" if name else f"{what}: {said}", ""
    got = _shown(detail["input"])
    return f"{what}: {name!r} {_expected(detail)}, not {got}", ""


def _members(known: Mapping[str, Any], path: Sequence[str]) -> Iterable[str]:
    """Return the members of the model that a path leads to, where it is the only one there."""
    for part in path:
        models = set(_models_in(getattr(known.get(part), "annotation", None)))
        if len(models) == 1:
            known = models.pop().model_fields
        elif part in known:
            return ()
    return known


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that an annotation consists of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _shown(value: Json) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return _cut(value)


_EXPECTED = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "none_required": "must be left out",
}


def _expected(detail: ErrorDetails) -> str:
    known = _EXPECTED.get(detail["type"])
    if known:
        return known
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return f"must be {context['expected']}"
    limits = {"greater_than_equal": ("at least", "ge"), "greater_than": ("more than", "gt"),
              "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt")}  # fmt: skip
    if detail["type"] in limits:
        words, key = limits[detail["type"]]
        return f"must be {words} {context[key]}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"is invalid ({message[:1].lower() + message[1:]})"
