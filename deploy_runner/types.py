"""The words of the design as plain data: what passes between the engine's modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = [
    "SCHEMA_VERSION",
    "SECRET_MARK",
    "VERSION",
    "Artifact",
    "Event",
    "Executor",
    "Finding",
    "Graph",
    "Json",
    "Kind",
    "Mark",
    "OutputSpec",
    "PathSource",
    "RefSource",
    "RemoteSpec",
    "Resources",
    "Scalar",
    "Source",
    "SourceFile",
    "StageNode",
    "StageResult",
    "State",
]

VERSION = "0.1.0"

SCHEMA_VERSION = 1
"""Part of every action key: raised when the engine's meaning of a stage changes."""

Scalar = str | int | float | bool | None
Json = Scalar | list["Json"] | dict[str, "Json"]
Kind = Literal["file", "folder"]


SECRET_MARK = "\x01secret:"
"""Begins what stands in a secret's place until the run knows its value."""


class Mark(NamedTuple):
    """A place in a text: `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Artifact(NamedTuple):
    """A file or a folder, identified by its content.

    `digest` is the SHA-256 (64 hex digits) of a file's bytes or of a folder's manifest;
    `size` is in bytes (of a folder: the sum over its files). `executable` is a file's; a folder's
    manifest has those of its files.
    """

    digest: str
    kind: Kind
    size: int
    executable: bool = False

    def row(self) -> list[Json]:
        """Return it as JSON, which `Artifact(*row)` reads."""
        return [self.digest, self.kind, self.size, *([True] if self.executable else [])]

    def as_dict(self) -> dict[str, Json]:
        """Return it as a JSON object."""
        executable: dict[str, Json] = {"executable": True} if self.executable else {}
        return {"kind": self.kind, "size": self.size, "digest": self.digest, **executable}


class PathSource(NamedTuple):
    """An input read from the project: `path` is relative to the project's root."""

    path: str
    kind: Kind | None = None
    mark: Mark | None = None


class RefSource(NamedTuple):
    """An input that is another stage's output."""

    stage: str
    output: str
    kind: Kind | None = None
    mark: Mark | None = None


Source = PathSource | RefSource


class OutputSpec(NamedTuple):
    """A declared output: `path` is relative to the stage's outputs folder."""

    path: str
    kind: Kind
    optional: bool = False


class SourceFile(NamedTuple):
    """A source file whose content enters an action key: `name` is what the key calls it."""

    name: str
    path: str


class Resources(NamedTuple):
    """A stage's limits: CPU cores, memory in bytes, time in seconds; 0 is no limit.

    `gpu` is the number of GPUs that it needs, `custom` other resources of a cluster's machines by name.
    """

    cpu: int = 1
    memory_bytes: int = 0
    timeout_s: float = 0.0
    gpu: int = 0
    custom: Mapping[str, float] = {}


class RemoteSpec(NamedTuple):
    """A shared cache: where it is, who may write, and how long a request may take.

    `url` is s3://, gs://, az:// or file://. A record counts if it is signed by one of `public_keys`, or by
    this machine's own `DEPLOY_RUNNER_CACHE_KEY`. With `push` what a run makes goes there; with `required` a
    run fails where the remote can't be used. `timeout_s` is for a request, and for a stalled transfer.
    """

    url: str
    push: bool = False
    required: bool = False
    public_keys: tuple[str, ...] = ()
    timeout_s: float = 10.0


class StageNode(NamedTuple):
    """One stage of a compiled pipeline, matrix expanded, references resolved.

    `inputs` is flat: a single input is `model`; the members of a mapping or list input are
    `candidates/fp32`, `samples/0`. `params` is the canonical JSON of the validated `with:`, with
    `{"$secret": NAME}` where a secret stands. `module` and `class_name` say where the stage
    type lives; `stage_dir` is the folder that `module` is a file of. At most `max_parallel` instances of its
    matrix run at the same time, if it isn't 0.
    """

    id: str
    base: str
    uses: str
    matrix: Mapping[str, Scalar]
    params: Mapping[str, Json]
    inputs: Mapping[str, Source]
    outputs: Mapping[str, OutputSpec]
    needs: tuple[str, ...]
    env: Mapping[str, str]
    secrets: tuple[str, ...]
    module: str
    class_name: str
    stage_dir: str
    implementation: tuple[SourceFile, ...]
    code: tuple[SourceFile, ...]
    packages: tuple[str, ...]
    facets: tuple[str, ...]
    preload: tuple[str, ...]
    network: bool
    converges: bool
    trust: bool
    resources: Resources
    target: Mapping[str, Json]
    mark: Mark
    lineage: bool = False
    max_parallel: int = 0

    @property
    def upstream(self) -> tuple[str, ...]:
        """Return the ids of the stages that must finish before this one."""
        found = {source.stage: None for source in self.inputs.values() if isinstance(source, RefSource)}
        for id_ in self.needs:
            found[id_] = None
        return tuple(found)


class Executor(NamedTuple):
    """Where stages run: "local" or "ray"; `address` is that of the cluster, empty for a local Ray.

    `autoscaling` says that the cluster adds machines by itself.
    """

    name: str = "local"
    address: str = ""
    autoscaling: bool = False


class Graph(NamedTuple):
    """A compiled pipeline: stages in topological order, and where every value came from.

    `origins` maps a dotted path (`vars.opset`, `stages.onnx.with.opset`) to its source, e.g.
    `pipeline.yaml:4:14`, `configs/production.yaml:3:9` or `--set vars.opset=20`. `live` says
    that the target is not a dry run.
    """

    name: str
    root: str
    pipeline: str
    stages: Mapping[str, StageNode]
    vars: Mapping[str, Json] = {}
    origins: Mapping[str, str] = {}
    target: Mapping[str, Json] = {}
    live: bool = False
    cache: RemoteSpec = RemoteSpec("")
    executor: Executor = Executor()


State = Literal["ran", "hit", "healed", "converged", "failed", "skipped", "interrupted"]


class RunOptions(NamedTuple):
    """The options of a run.

    `cpu` is the number of cores to use (default: all) and `memory_bytes` the memory (default: no limit), of
    this machine. `executor` and `ray_address` replace the pipeline's `executor:`.
    `fail_fast` stops at the first failure; `force` runs the named stages even on a cache hit;
    `keep_workdirs` keeps the working folder of each stage that ran; `require_sandbox` fails on a
    machine that can't confine stages fully.
    """

    cpu: int | None = None
    memory_bytes: int | None = None
    fail_fast: bool = False
    force: bool = False
    keep_workdirs: bool = False
    require_sandbox: bool = False
    executor: str | None = None
    ray_address: str | None = None


class StageResult(NamedTuple):
    """The result of one stage in a run.

    `reason` says why it ran or was skipped, `error` why it failed. `evidence` is the folder with the files
    that a failed gate left for inspection, `workdir` the kept working folder. `sandbox` names the
    protections that confined the worker, `lacks` the accesses that they did not prevent.
    """

    id: str
    state: State
    key: str = ""
    outputs: Mapping[str, Artifact] = {}
    figures: Mapping[str, Json] = {}
    seconds: float = 0.0
    reason: str = ""
    error: str = ""
    exit_code: int = 0
    workdir: str = ""
    evidence: str = ""
    sandbox: str = ""
    lacks: tuple[str, ...] = ()


class Finding(NamedTuple):
    """One fact about a remote: the value the pipeline wants, and the one found."""

    what: str
    wanted: str
    found: str

    @property
    def in_sync(self) -> bool:
        """True if the value found is the value wanted."""
        return self.found == self.wanted

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + ("" if self.in_sync else f", wanted {self.wanted}")


class Event(NamedTuple):
    """Something that happened in a run.

    `kind`: "run-note" (text), "run-started", "stage-started", "stage-log" (text), "stage-progress" (text,
    fraction), "stage-finished" (result), "run-finished". `time_s` is seconds since the epoch.
    """

    kind: str
    time_s: float
    stage: str = ""
    text: str = ""
    fraction: float = 0.0
    result: StageResult | None = None
