"""`init`: look at what was trained, and write a pipeline for it that runs as it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from ..errors import UsageError, closest_path, counted
from ..report.lines import size
from ..store.files import write_atomic
from ..usercode.loading import split
from .handwriting import rendered
from .looking import Asked, Factory, Found, Kwargs, ModelPath, Shape, TrustSwitch, look
from .options import Argument, Option
from .starting import WEIGHTS, Goal, Stages, prepared, stages_for, weights_stage

__all__ = ["Init"]

_SCHEMA = "pipeline.schema.json"
_STORE = ".deploy-runner"
_WHERE = "name the file that training has written, e.g. checkpoints/best.pt"
_DRY_RUN = """\
# The default target: local servers, started empty for each push, so nothing leaves the machine.
target:
  name: dry-run
  live: false
"""
_PRODUCTION = """\
# The real thing: deploy-runner run --config configs/production.yaml, with credentials in the environment.
# Uncomment the rest and replace the names; then deploy-runner doctor --config configs/production.yaml.
target:
  name: production
  live: true
"""
_TARGETS = {
    "sagemaker": (
        """\
  aws:
    region: us-east-1
    bucket: dry-run-models
    create_bucket: true
    role_arn: arn:aws:iam::123456789012:role/sagemaker
    image_uri: 123456789012.dkr.ecr.us-east-1.amazonaws.com/inference:latest
""",
        """\
  # aws:
  #   region: eu-central-1
  #   bucket: your-models
  #   role_arn: arn:aws:iam::123456789012:role/your-sagemaker-role
  #   image_uri: 763104351884.dkr.ecr.eu-central-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1
""",
    ),
    "kserve": (
        "  aws: {region: us-east-1, bucket: dry-run-models, create_bucket: true}\n",
        "  # aws: {region: eu-central-1, bucket: your-models}\n",
    ),
    "oci": ("", "  # oci: {registry: ghcr.io}\n"),
    "mlflow": ("", "  # mlflow: {tracking_uri: https://mlflow.example.com}\n"),
    "hub": (
        "  hub:\n    namespace: local\n",
        "  # hub:\n  #   namespace: your-organisation  # default: the account of HF_TOKEN\n",
    ),
}
"""Goal → what its targets are, in a dry run and in production."""


class Init(NamedTuple):
    """Look at a trained model and write a pipeline that runs."""

    path: ModelPath
    folder: Annotated[
        str, Argument("the project, where the pipeline is written (default: the current folder)")
    ] = "."
    goal: Annotated[Goal, Option("what the model is for (default: onnx)")] = "onnx"
    factory: Factory = None
    kwargs: Kwargs = None
    shape: Shape = None
    trust: TrustSwitch = False
    copy: Annotated[bool, Option("copy what lies outside of the project into it")] = False
    ci: Annotated[bool, Option("also write a workflow for GitHub Actions")] = False

    def __call__(self) -> int:
        """Write `pipeline.yaml`, its schema and the goal's configs; print what was found and what to do next.

        Raises UsageError where there is a pipeline already, where nothing can be made of the file, and for
        a goal that it can't serve; then nothing is written.
        """
        project = Path(self.folder)
        target = project / "pipeline.yaml"
        if target.exists():
            raise UsageError(
                f"{target} already exists", fix=f"rename it first, or run it: {_command(target)}"
            )
        if project.exists() and not os.access(project, os.W_OK):
            fix = "name a folder of your own as the project, with --copy"
            raise UsageError(f"{project.resolve()} can't be written", fix=fix)
        if self.factory is not None:
            _require_form(self.factory)
        files = Planned(project)
        try:
            place = files.take(Path(self.path), copy=self.copy)
            asked = Asked(self.factory, self.kwargs or {}, self.shape, self.trust)
            found = look(project, place, asked)
            files.texts["pipeline.yaml"] = "\n".join(_pipeline(found, self.goal, _name(project))) + "\n"
        except BaseException:
            files.give_back()
            raise
        files.add_configs(self.goal)
        if self.ci:
            files.add_workflow()
        files.write()
        for line in (*files.said, *_said(found)):
            print(line)
        print(f"wrote {', '.join(files.texts)}; now: {_command(target)}")
        return 0


def _command(pipeline: Path) -> str:
    return f"deploy-runner run {shlex.quote(str(pipeline))}"


class Planned:
    """The files of the new project, written when everything is known."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.texts: dict[str, str] = {}
        self.said: list[str] = []
        self._copied: Path | None = None
        self._made = not project.exists()

    def take(self, source: Path, *, copy: bool) -> Path:
        """Return where the model lies in the project; one outside of it is copied if that is asked for."""
        if not source.exists():
            raise UsageError(f"{source} does not exist", fix=closest_path(source) or _WHERE)
        if source.resolve().is_relative_to(self.project.resolve()):
            return source
        if not copy:
            raise UsageError(
                f"{source} is outside the project {self.project.resolve()}, where a pipeline's files lie",
                fix=f"copy its {size(_bytes(source))} with --copy, or name a folder that contains it",
            )
        place = self.project / source.name
        if place.exists():
            raise UsageError(f"{place} already exists", fix="name it, or remove it")
        self.said.append(f"copied {source} to {place}, {size(_bytes(source))}")
        self.project.mkdir(parents=True, exist_ok=True)
        self._copied = place
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, place)
        return place

    def give_back(self) -> None:
        """Remove what was copied."""
        if self._copied is not None and self._copied.is_dir():
            shutil.rmtree(self._copied)
        elif self._copied is not None:
            self._copied.unlink(missing_ok=True)
        if self._made and self.project.is_dir() and not any(self.project.iterdir()):
            self.project.rmdir()

    def add_configs(self, goal: Goal) -> None:
        """Plan the schema, what Git ignores, and the targets of a goal that pushes."""
        from ..pipeline.schema import json_schema

        self._add(_SCHEMA, json.dumps(json_schema(self.project), indent=2, ensure_ascii=False) + "\n")
        self._ignore_store()
        if goal in _TARGETS:
            dry_run, production = _TARGETS[goal]
            self._add("configs/dry-run.yaml", _DRY_RUN + dry_run)
            self._add("configs/production.yaml", _PRODUCTION + production)

    def add_workflow(self) -> None:
        """Plan the workflow, in the repository that the project is in."""
        import jinja2

        project = self.project.resolve()
        root = next((p for p in (project, *project.parents) if (p / ".git").exists()), project)
        text = (Path(__file__).parent / "workflow.yml").read_text("utf-8")
        inside = project.relative_to(root).as_posix()
        made = jinja2.Environment(
            keep_trailing_newline=True, variable_start_string="{=", variable_end_string="=}"
        ).from_string(text)
        place = "/".join([".."] * len(project.relative_to(root).parts) + [".github/workflows/deploy.yml"])
        self._add(place, made.render(folder="" if inside == "." else inside))

    def _add(self, name: str, text: str) -> None:
        """Plan a file, unless the project has one, which is kept."""
        if not (self.project / name).exists():
            self.texts[name] = text
        elif (self.project / name).read_bytes() != text.encode():
            self.said.append(f"kept {self.project / name}, which already exists")

    def _ignore_store(self) -> None:
        """Plan that Git ignores the store, after what the project has it ignore already."""
        place = self.project / ".gitignore"
        before = place.read_text("utf-8", errors="surrogateescape") if place.exists() else ""
        if not {_STORE, f"{_STORE}/", f"/{_STORE}", f"/{_STORE}/"} & {
            line.strip() for line in before.splitlines()
        }:
            self.texts[".gitignore"] = (
                before + "\n" * (bool(before) and not before.endswith("\n")) + f"{_STORE}/\n"
            )

    def write(self) -> None:
        """Write everything, the pipeline last."""
        for name, text in sorted(self.texts.items(), key=lambda item: item[0] == "pipeline.yaml"):
            place = self.project / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, text.encode("utf-8", errors="surrogateescape"))


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _require_form(factory: str) -> None:
    try:
        split(factory)
    except ValueError as error:
        raise UsageError(str(error), fix="e.g. --factory model.py:build") from None


def _name(project: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", project.resolve().name).strip("-._") or "model"


def _pipeline(found: Found, goal: Goal, name: str) -> Iterator[str]:
    yield f"# yaml-language-server: $schema={_SCHEMA}"
    yield from (f"# {line}" for line in _said(found))
    yield "version: 1"
    yield f"name: {json.dumps(name, ensure_ascii=False)}"
    yield ""
    yield "stages:"
    try:
        stages = stages_for(found, goal, name)
    except UsageError:  # Weights alone are a beginning, where nothing was asked for.
        if found.kind != "weights" or found.tried or goal != "onnx":
            raise
        yield from rendered({"weights": weights_stage(found)}, {})
        yield ""
        yield from (f"  # {line}" for line in _by_hand(found))
        return
    yield from rendered(stages, dict(_hints(found, stages)))


def _by_hand(found: Found) -> Iterator[str]:
    """Yield the stage that is missing, for the user to complete."""
    yield "To continue, name what builds the nn.Module, and the shape of an input that it takes."
    shape = {"shape": [1, 3, 224, 224]}
    model = prepared(found.factory or "model.py:build", found.fit, shape)
    stage = {"uses": "model.prepare", "inputs": {"weights": WEIGHTS}, "with": model}
    yield from (line.removeprefix("  ") for line in rendered({"model": stage}, {}))


def _hints(found: Found, stages: Stages) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield (stage, section) and a line that only the user can write, commented."""
    real = "samples: heldout.npz  # real inputs by their names: every gate is then judged on them"
    if found.kind != "transformers":
        yield ("model", "inputs"), real
    if (
        found.kind == "weights"
        and len(found.fit["example"].get("shape", [])) == 4
        and found.fit["dynamic"] is None
    ):
        axes = f'dynamic: {{{found.fit["names"][0]}: {{"0": batch, "2": height, "3": width}}}}'
        yield ("model", "with"), f"{axes}  # for pictures of any size"
    if "hub" in stages:
        yield ("hub", "with"), "license: apache-2.0  # the identifier that the Hub knows it by"


def _said(found: Found) -> Iterator[str]:
    """Yield what was found, a line each."""
    facts = found.facts
    match found.kind:
        case "transformers":
            labels = f", {counted(facts['labels'], 'label')}" if facts["labels"] else ""
            task = f", for {facts['task']}" if facts["task"] else ""
            yield f"{found.path}: {facts['class'] or facts['model_type']} of transformers{labels}{task}"
        case "onnx":
            given = ", ".join(
                f"{name} [{', '.join(map(str, dims))}]" for name, dims in facts["inputs"].items()
            )
            yield f"{found.path}: ONNX, opset {facts['opset']}, takes {given}"
        case "torchscript":
            yield f"{found.path}: TorchScript, which upstream has deprecated since torch 2.11"
        case "pt2":
            yield f"{found.path}: a program of torch.export"
        case "weights":
            by = f" by {facts['trainer']}" if facts["trainer"] else ""
            epoch = f", epoch {facts['epoch']}" if facts["epoch"] is not None else ""
            key = f" under {facts['key']!r}" if facts["key"] else ""
            yield (
                f"{found.path}: {counted(facts['parameters'], 'parameter')} in "
                f"{counted(len(facts['tensors']), 'tensor')}{key}, "
                f"{'/'.join(facts['dtypes'])}{by}{epoch}"
            )
            ends = [next(iter(facts["tensors"].items())), [*facts["tensors"].items()][-1]]
            yield "from {} to {}".format(*(f"{name} {shape}" for name, shape in ends))
            yield from _said_of_model(found)


def _said_of_model(found: Found) -> Iterator[str]:
    library = found.facts["library"]
    if found.factory is None:
        yield "nothing that builds this model was found"
        return
    how = "recognised by the names and shapes of its weights" if library else "its weights fit exactly"
    yield f"built by {found.factory}: {how}"
    if found.also:
        yield f"the weights fit {', '.join(found.also)} as well: make sure that this is the right one"
    if found.fit["example"] is None:
        yield "no input was found that it takes"
