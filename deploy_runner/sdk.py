"""What the author of a stage type imports.

A stage type is one class: three models (parameters, inputs, outputs) and `run`:

    from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams


    class Upper(Stage):
        \"\"\"Write a text in capitals.\"\"\"

        uses = "text.upper"

        class Params(StageParams):
            suffix: str = ""

        class Inputs(StageInputs):
            text: File

        class Outputs(StageOutputs):
            text: File = Output("upper.txt")

        def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
            outputs.text.write_text(inputs.text.read_text().upper() + params.suffix)

The module is imported to validate a pipeline, so heavy libraries belong inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from .errors import ConflictError, GateError, StageError, closest
from .server.reasons import first_line
from .store.stat import sha256_file
from .types import Finding, Json, Kind, Scalar
from .usercode.loading import load as load_code
from .usercode.module_names import module_path

__all__ = [
    "Code",
    "ConflictError",
    "Context",
    "Field",
    "File",
    "Finding",
    "Folder",
    "GateError",
    "Output",
    "Stage",
    "StageError",
    "StageInputs",
    "StageOutputs",
    "StageParams",
    "closest",
    "first_line",
    "load_code",
    "module_path",
    "sha256_file",
]


@dataclass(frozen=True, slots=True)
class PathKind:
    """Marks a `Path` annotation as a file or a folder artifact."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class CodeReference:
    """Marks a `str` annotation as `path/to/file.py:function` of the user's project."""


File = Annotated[Path, PathKind("file")]
Folder = Annotated[Path, PathKind("folder")]
Code = Annotated[str, CodeReference()]


class StageParams(BaseModel):
    """The base of a stage type's `with:` parameters. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageInputs(BaseModel):
    """The base of a stage type's inputs.

    A field is a `File`, a `Folder`, `File | Folder` where either will do, `dict[str, File]` or
    `list[File]`; `| None` with a default of None makes it optional. With `extra="allow"` in its
    config the user names the inputs, and they are read as `inputs["name"]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __getitem__(self, name: str) -> Path:
        return Path((self.model_extra or {})[name])


class StageOutputs(BaseModel):
    """The base of a stage type's outputs: a `File` or `Folder` with `Output("name.ext")`.

    A field that may be left unwritten is annotated `File | None`. With `extra="allow"` the user
    names the outputs in the pipeline (`outputs: {table: out.csv}`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __getitem__(self, name: str) -> Path:
        return Path((self.model_extra or {})[name])


def Output(path: str, description: str = "") -> Any:  # noqa: N802 - it reads as a declaration
    """Declare an output written at `path` inside the stage's outputs folder."""
    return Field(default=Path(path), description=description)


@dataclass(slots=True)
class Context:
    """What a running stage may know and say.

    `workdir` is private scratch space that is deleted afterwards. `threads` is the number of
    CPU cores granted. `target` is the chosen target's mapping (empty unless the stage declares
    `network`), `secrets` the declared secrets by name. `code_files` are the project's files that
    the stage's `Code` parameters need, by their path relative to the project. `lineage` says of each
    stage before this one what it was made from (empty unless the stage declares `lineage`).
    `digests` holds the SHA-256 of each file input by its name (`package`, `models/fp32`). `packages` are
    the versions of the installed packages that the stage and its `Code` depend on. `run` is the
    id of the run and `commit` that of the project's Git; both are empty unless the target is live.
    """

    stage: str
    workdir: Path
    seed: int = 0
    threads: int = 1
    trust: bool = False
    matrix: Mapping[str, Scalar] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    target: Mapping[str, Json] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    code_files: Mapping[str, Path] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    commit: str = ""
    figures: dict[str, Json] = field(default_factory=dict)
    converged: bool = False
    _load: Callable[[str], Any] | None = None
    _log: Callable[[str], None] = print
    _progress: Callable[[float, str], None] = lambda fraction, message: None

    def log(self, message: str) -> None:
        """Write one line to the stage's log."""
        self._log(message)

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how much of the stage is done, from 0 to 1."""
        self._progress(fraction, message)

    def figure(self, name: str, value: Json) -> None:
        """Record a measured value; it becomes part of the action record."""
        self.figures[name] = value

    def load(self, code: str) -> Any:
        """Return the object that a `Code` parameter names.

        Raises StageError where the file, or the name in it, does not exist.
        """
        if self._load is None:
            raise StageError(f"this stage has no project to load {code!r} from")
        return self._load(code)


class Stage:
    """The base of every stage type; see the module's docstring.

    A push also defines `status`, and may define `rollback` and `promote`: what the verbs of these
    names call, with the live target; `doctor` calls `credentials`.

    `packages` are the distributions whose versions enter the action key. `preload` are the
    modules that the fork server imports before the stage is forked. `facets` are platform facts
    that the outputs depend on: "arch", "isa". `network` gives the worker the network, the target
    and its credentials; `services` are what a dry run must start for it: "aws", "hub".
    `converges` marks a push: against a live target it always runs. `lineage` gives the stage all that
    its inputs were made from, and makes its key depend on it.
    """

    uses: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    preload: ClassVar[tuple[str, ...]] = ()
    facets: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    network: ClassVar[bool] = False
    services: ClassVar[tuple[str, ...]] = ()
    converges: ClassVar[bool] = False
    lineage: ClassVar[bool] = False

    class Params(StageParams):
        """No parameters."""

    class Inputs(StageInputs):
        """No inputs."""

    class Outputs(StageOutputs):
        """No outputs."""

    def run(self, ctx: Context, params: Any, inputs: Any, outputs: Any) -> None:
        """Make the outputs from the inputs, or raise StageError or GateError."""
        raise StageError(f"stage type {self.uses!r} defines no run()")

    def status(self, ctx: Context, params: Any, inputs: Any) -> list[Finding]:
        """Return what the remote has, each beside what the pipeline says; change nothing."""
        raise StageError(f"stage type {self.uses!r} can't tell its status")

    def credentials(self, ctx: Context, params: Any) -> str:
        """Say what a push to the target would authenticate by; ask nothing of the remote.

        Raises StageError where it lacks that. Nothing is said by a stage that needs none.
        """
        return ""

    def rollback(self, ctx: Context, params: Any, to: str) -> str:
        """Bring back what was deployed before, or the digest that begins with `to`; say what is there."""
        raise StageError(f"stage type {self.uses!r} can't be rolled back")

    def promote(self, ctx: Context, params: Any, inputs: Any, status: str) -> str:
        """Set the approval status of what this pipeline has registered; say of what."""
        raise StageError(f"stage type {self.uses!r} has nothing to promote")
