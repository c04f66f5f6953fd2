"""Look at what a user has trained, in the sandbox: what it is, and what builds its model."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import UsageError
from ..types import RunOptions
from ..usercode import factories
from .options import Argument, Option, mapping, whole_numbers

if TYPE_CHECKING:
    from ..api import Pipeline

__all__ = ["Asked", "Factory", "Found", "Kwargs", "ModelPath", "Shape", "TrustSwitch", "look"]

_STAGE = "checkpoint.inspect"
_PYTHON = (".py", ".ipynb")
_OF_MAIN = re.compile(r"Can't get attribute '(\w+)' on <module '__main__'")


ModelPath = Annotated[str, Argument("a checkpoint of any kind, its folder, a Hub folder, an .onnx file")]
Factory = Annotated[
    str | None,
    Option("what builds your nn.Module (default: it is looked for)", "FILE.py:NAME|package.module:NAME"),
]
Kwargs = Annotated[
    Mapping[str, Any] | None, Option("the factory's arguments, as YAML", "'NAME: VALUE, …'", mapping)
]
Shape = Annotated[
    Sequence[int] | None,
    Option("the shape of one example input (default: one is found)", "1,3,224,224", whole_numbers),
]
TrustSwitch = Annotated[bool, Option("run the code that the file contains, as a pickled module does")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says of the model; `trust` lets code run that the file contains."""

    factory: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shape: Sequence[int] | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What the thing at `path` (relative to the project) is.

    `facts` are those of checkpoint.inspect. `factory` builds the model, with what `fit` says, and so does
    each of `also`; None where nothing does, and `tried` says what was tried: factory → why not. `code`
    defines the class that a pickled module names.
    """

    path: str
    facts: Mapping[str, Any]
    factory: str | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    tried: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[str] = ()
    code: str | None = None

    @property
    def kind(self) -> str:
        """Return `weights`, `transformers`, `onnx`, `torchscript`, `pt2` or `adapter`."""
        return str(self.facts["kind"])


def look(project: Path, path: Path, asked: Asked) -> Found:
    """Return what is at `path`, which lies in `project`, and the factory that builds its model.

    That is the one asked for, or one of timm and torchvision, or one in the project's own files. Raises
    UsageError for what no stage can read, and where the factory that is asked for doesn't fit.
    """
    if path.suffix in _PYTHON:
        raise _refused_code(path)
    place = path.resolve().relative_to(project.resolve()).as_posix()
    if place == ".":
        fix = "name it from the folder above, where the pipeline will lie"
        raise UsageError(f"{path} is the project itself", fix=fix)
    if asked.factory is None and path.is_file() and _is_hub_folder(path.parent):
        raise UsageError(f"{path} is the file of a model of transformers, whose config.json lies beside it",
                         fix=f"name the folder: {path.parent}")  # fmt: skip
    if asked.factory is not None:
        question = _question(asked, factory=asked.factory, kwargs=dict(asked.kwargs))
        facts, problem = _answers(project, place, [question], asked)[0]
        if problem:
            raise UsageError(problem)
        return Found(place, facts, asked.factory, facts.get("fit", {}))
    facts, problem = _answers(project, place, [_question(asked)], asked)[0]
    code = _code_of_module(project, problem) if asked.trust else None
    if code is not None:
        facts, problem = _answers(project, place, [{"code": code}], asked)[0]
    if problem:
        raise UsageError(problem.replace("set `trust: true` on the stage", "add --trust"))
    if facts["kind"] != "weights":
        return Found(place, facts, fit=facts.get("fit", {}))
    return _with_factory(project, Found(place, facts, code=code), asked)


def _with_factory(project: Path, found: Found, asked: Asked) -> Found:
    """Return what was found with the first factory that fits; one whose input is known goes first."""
    library = found.facts["library"]
    ways: list[tuple[str, Mapping[str, Any]]] = []
    if library:
        ways = [(library["factory"], {**library["kwargs"], **asked.kwargs})]
    else:
        names = factories.candidates(project, found.facts["tensors"], named=found.facts["module"])
        ways = [(name, asked.kwargs) for name in names]
    if not ways:
        return found
    defined = {"code": found.code} if found.code else {}
    questions = [_question(asked, factory=name, kwargs=dict(kwargs), **defined) for name, kwargs in ways]
    answers = _answers(project, found.path, questions, asked)
    tried, fitting = {}, []
    for (name, _), (facts, problem) in zip(ways, answers, strict=True):
        if problem:
            tried[name] = problem
        else:
            fitting.append((name, facts["fit"]))
    fitting.sort(key=lambda pair: pair[1]["example"] is None)
    factory, fit = fitting[0] if fitting else (None, {})
    others = [name for name, of in fitting[1:] if of["class"] != fit["class"]]
    also = library["also"] if library else others
    return replace(found, factory=factory, fit=fit, tried=tried, also=also)


def _is_hub_folder(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _code_of_module(project: Path, problem: str) -> str | None:
    """Return what defines the class that a training script has pickled as its own."""
    missing = _OF_MAIN.search(problem)
    return factories.place_of(project, missing.group(1)) if missing else None


def _question(asked: Asked, **more: Any) -> dict[str, Any]:
    """Return the parameters of the stage: what else is asked, and the shape that the user says."""
    return more if asked.shape is None else {**more, "shape": list(asked.shape)}


def _answers(
    project: Path, place: str, questions: Sequence[Mapping[str, Any]], asked: Asked
) -> list[tuple[Mapping[str, Any], str]]:
    """Run the stage for each question, in a store for that alone; return (facts, "") or ({}, why not)."""
    from .. import api

    stages = {f"look-{n}": _stage(place, question, asked) for n, question in enumerate(questions)}
    with tempfile.TemporaryDirectory(prefix="deploy-runner-") as home:
        pipeline = _pipeline(project, Path(home), stages)
        record = api.run(pipeline, options=RunOptions())
        if record.exit_code == 130:
            raise KeyboardInterrupt
        found: list[tuple[Mapping[str, Any], str]] = []
        for name in stages:
            artifact = record.artifacts(name).get("found")
            if artifact is None:
                found.append(({}, str(record.stages[name].get("error") or "it could not be looked at")))
            else:
                found.append((json.loads(pipeline.store.object_path(artifact.digest).read_bytes()), ""))
    return found


def _stage(place: str, question: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    made: dict[str, Any] = {"uses": _STAGE, "inputs": {"model": place}, "with": dict(question)}
    return made | ({"trust": True} if asked.trust else {})


def _pipeline(project: Path, home: Path, stages: Mapping[str, Any]) -> Pipeline:
    """Return a pipeline of the project that is in no file."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from ..api import Pipeline
    from ..pipeline.build import build
    from ..pipeline.identity import identity
    from ..pipeline.loader import load_yaml
    from ..pipeline.overlay import Document
    from ..registry import Registry

    text = json.dumps({"version": 1, "name": "look", "stages": stages})
    path = project / "pipeline.yaml"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DEPLOY_RUNNER_")}
    graph, _ = build(Document(load_yaml(text, "init"), (), {}), path, environ, Registry(project))
    return Pipeline(graph, home, identity(path, [], home), environ)


def _refused_code(path: Path) -> UsageError:
    known = factories.modules_in(path) if path.suffix == ".py" else []
    factory = f" --factory {path.name}:{known[0]}" if known else ""
    return UsageError(
        f"{path.name} is code, not a trained model",
        fix=f"name the checkpoint that it has trained: deploy-runner init CHECKPOINT{factory}",
    )
