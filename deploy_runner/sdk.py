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

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .errors import ConflictError, GateError, StageError, closest, counted
from .server.reasons import first_line
from .store.stat import sha256_file
from .types import SECRET_MARK, Finding, Json, Kind, Scalar
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
    "counted",
    "first_line",
    "judged",
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
    """Marks a `str` annotation as the name of a function: `path/to/file.py:name` or `package.module:name`."""


File = Annotated[Path, PathKind("file")]
"""The type of an input or output that is a file."""

Folder = Annotated[Path, PathKind("folder")]
"""The type of an input or output that is a folder."""

Code = Annotated[str, CodeReference()]
"""The type of a parameter that names a function or class: `path/to/file.py:name` or `package.module:name`.

Pass its value to `ctx.load`. The file and every local module that it imports are part of the action key,
and so are the versions of the installed packages that it comes from or imports.
"""


class StageParams(BaseModel):
    """The base of a stage type's `with:` parameters. Unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def gpus_needed(self) -> int:
        """Return how many GPUs the stage needs with these parameters; `resources.gpu` may give it more."""
        return 0

    def check_inputs(self, given: Collection[str]) -> None:
        """Raise StageError if the stage can't run with these parameters and the inputs that are `given`.

        `given` are their names. It is called before anything is run, so only names can be judged.
        """


def judged(rule: Callable[[str], str]) -> AfterValidator:
    """Return the validator of a text parameter: `Annotated[str, judged(rule)]`.

    `rule` returns the text, or raises ValueError with what is wrong with it. A secret is judged in the run,
    which knows its value.
    """
    return AfterValidator(lambda text: text if text.startswith(SECRET_MARK) else rule(text))


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
    """What a running stage knows about its run, and how it reports progress and results."""

    stage: str
    """The stage's id in the pipeline, e.g. `int8[minmax]`."""
    workdir: Path
    """A private folder for temporary files, deleted when the stage has ended."""
    seed: int = 0
    """A seed derived from the action key; the generators of Python, numpy and torch are set to it."""
    threads: int = 1
    """The number of CPU cores granted by `resources: {cpu: N}`."""
    trust: bool = False
    """True if the pipeline sets `trust: true`: code inside an input may be executed."""
    matrix: Mapping[str, Scalar] = field(default_factory=dict)
    """The values of this instance of a matrix stage, by name."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The environment variables that the stage declares in the pipeline, by name."""
    target: Mapping[str, Json] = field(default_factory=dict)
    """The pipeline's `target:` mapping; empty unless the stage type sets `network`."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """The values of the secrets that the stage's parameters refer to, by name."""
    code_files: Mapping[str, Path] = field(default_factory=dict)
    """The project files that the `Code` parameters need, by path relative to the project."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """For each upstream stage by id: its key's pre-image, its `sources` and what it `made`.

    Empty unless the stage type sets `lineage`.
    """
    digests: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each input by flat name, e.g. `models/fp32`; that of a folder is its manifest's."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """The installed versions of the packages that the stage type and its `Code` parameters depend on."""
    run: str = ""
    """The run's id; empty unless the target is live."""
    commit: str = ""
    """The Git commit of the project; empty unless the target is live and the stage type sets `converges`."""
    figures: dict[str, Json] = field(default_factory=dict)
    """The values recorded by `figure`."""
    converged: bool = False
    """Set to True by a push that found the remote up to date and changed nothing."""
    _load: Callable[[str], Any] | None = None
    _log: Callable[[str], None] = print
    _progress: Callable[[float, str], None] = lambda fraction, message: None

    def log(self, message: str) -> None:
        """Write one line to the stage's log."""
        self._log(message)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how much of the stage is done, from 0 to 1."""
        self._progress(fraction, message)

    def figure(self, name: str, value: Json) -> None:
        """Record a measured value; it becomes part of the action record."""
        self.figures[name] = value

    def load(self, code: str) -> Any:
        """Return the object that a `Code` parameter names.

        Raises StageError if the file does not exist, or nothing there has the name.
        """
        if self._load is None:
            raise StageError(f"{code!r} can't be loaded without a project")
        return self._load(code)


class Stage:
    """The base class of every stage type.

    A subclass defines `uses`, the nested models `Params`, `Inputs` and `Outputs`, and `run`. A push also
    defines `status`, and may define `rollback` and `promote`, which the commands of the same names call
    with a live target, `credentials`, which `doctor` calls, `check_target`, and `advice`, which `plan` and
    `doctor` print.
    """

    uses: ClassVar[str]
    """The type's name in a pipeline and its path in `stages/`: `text.upper` is `text/upper.py`."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose installed versions are part of the action key."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that the fork server imports once, before it forks the stage's worker."""
    facets: ClassVar[tuple[str, ...]] = ()
    """Properties of the machine that the outputs depend on and that are therefore part of the action key.

    "arch" is the processor architecture as `uname -m` prints it, "isa" the vector instructions by
    which numerical kernels are chosen (AVX-512, VNNI, …), "g++" the version of that compiler, which has to
    be there.
    """
    extra: ClassVar[str] = ""
    """The extra of deploy-runner that installs what the stage imports, e.g. "onnx"."""
    network: ClassVar[bool] = False
    """True gives the worker network access, the target, and with a live target the credentials."""
    services: ClassVar[tuple[str, ...]] = ()
    """The local servers that a dry run starts for the stage: "aws", "hub", "mlflow", "oci"."""
    converges: ClassVar[bool] = False
    """True marks a push: with a live target it runs every time and is never a cache hit."""
    lineage: ClassVar[bool] = False
    """True gives the stage the provenance of all its inputs, and makes it part of the action key."""

    class Params(StageParams):
        """No parameters."""

    class Inputs(StageInputs):
        """No inputs."""

    class Outputs(StageOutputs):
        """No outputs."""

    def run(self, ctx: Context, params: Any, inputs: Any, outputs: Any) -> None:
        """Write the outputs; raise StageError if that is impossible, GateError if a check fails."""
        raise StageError(f"stage type {self.uses!r} defines no run()")

    def check_target(
        self, params: Mapping[str, Any], target: Mapping[str, Any], environ: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return what is wrong with a live target, by the setting's place in it, e.g. `aws.bucket`.

        The value is a sentence, or empty if the setting is missing. `params` are the stage's, as JSON.
        `validate`, `plan`, `doctor` and `run` call it before anything is run: nothing may be asked of the
        remote, and nothing heavy imported.
        """
        return {}

    def status(self, ctx: Context, params: Any, inputs: Any) -> list[Finding]:
        """Return the remote's state, each fact with the value the pipeline wants; change nothing."""
        raise StageError(f"stage type {self.uses!r} has no status")

    def credentials(self, ctx: Context, params: Any) -> str:
        """Say what a push to the target would authenticate by; ask nothing of the remote.

        Raises StageError if the credentials are missing. The text is empty if the stage needs none.
        """
        return ""

    def advice(self, params: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
        """Return what is to be known of a choice before a run, in a sentence each; ask nothing of the remote.

        `plan` and `doctor` print it for every push. `params` are the stage's, as JSON.
        """
        return []

    def rollback(self, ctx: Context, params: Any, to: str) -> str:
        """Restore the previous deployment, or the one whose digest begins with `to`; describe the result."""
        raise StageError(f"stage type {self.uses!r} can't be rolled back")

    def promote(self, ctx: Context, params: Any, inputs: Any, status: str) -> str:
        """Set the approval status of the registered version; describe what was changed."""
        raise StageError(f"stage type {self.uses!r} has nothing to promote")
