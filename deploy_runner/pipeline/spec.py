"""The pydantic models of a pipeline's structure."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import cut

__all__ = [
    "CacheSpec",
    "ExecutorSpec",
    "PipelineSpec",
    "ResourcesSpec",
    "StageSpec",
    "TargetSpec",
    "parse_duration",
    "parse_size",
]

STAGE_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")

_UNITS_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
                "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
_UNITS_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(ms|s|m|h|d)\s*")


def parse_size(value: str | int) -> int:
    """Return bytes from `512MiB`, `2 GB` or a number. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)", str(value).strip())
    unit = found.group(2).upper() if found else ""
    if not found or unit not in _UNITS_BYTES:
        raise ValueError(f"{cut(value)} is not a size such as 512MiB or 2GB")
    return int(float(found.group(1)) * _UNITS_BYTES[unit])


def parse_duration(value: str | int | float) -> float:
    """Return seconds from `90s`, `1h30m` or a number. Raises ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text, at, seconds = str(value).strip(), 0, 0.0
    while at < len(text) or not text:
        part = _DURATION.match(text, at)
        if part is None:
            raise ValueError(f"{cut(value)} is not a duration such as 90s or 1h30m")
        seconds += float(part[1]) * _UNITS_SECONDS[part[2]]
        at = part.end()
    return seconds


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return itself: pydantic copies a default for each stage, and what is frozen needs no copy."""
        return self


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
