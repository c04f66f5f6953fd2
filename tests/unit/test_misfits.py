"""What doesn't fit a stage type or the pipeline is said in the words of the file, with the nearest name."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from deploy_runner.api import load
from deploy_runner.errors import Problem, SpecError
from deploy_runner.pipeline.spec import StageSpec
from deploy_runner.registry import Registry
from tests.conftest import Project

INTERNAL = re.compile(
    r"\w\[\w|function-|tagged-union|[Ii]nput should|value_error|should be|(string|int|float|bool|list|dict)_type|<class|None"
)
"""What only pydantic and Python say."""


class Field(NamedTuple):
    """A field of a stage type's parameters, or of a model in them, and how a pipeline writes it."""

    uses: str
    path: tuple[str | int, ...]
    annotation: Any

    def written(self, value: Any, name: str = "") -> dict[str, Any]:
        """Return the stage that sets the field, or another name in its place."""
        for part in reversed((*self.path[:-1], name or self.path[-1])):
            value = [value] if part == 0 else {part: value}
        return {"uses": self.uses, "with": value}


def fields() -> list[Field]:
    """Return every field of every stage type."""
    return [
        Field(kind.cls.uses, path, annotation)
        for kind in Registry(Path("/nowhere")).all()
        for path, annotation in _fields(kind.cls.Params, ())
    ]


def _fields(
    model: type[BaseModel], path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for name, field in model.model_fields.items():
        yield (*path, name), field.annotation
        for way, inner in _models(field.annotation, frozenset()):
            yield from _fields(inner, (*path, name, *way))


def _models(annotation: Any, seen: frozenset[Any]) -> Iterator[tuple[tuple[str | int, ...], type[BaseModel]]]:
    """Yield the models in an annotation, each with the way to it through lists and mappings."""
    if hasattr(annotation, "__value__") and annotation not in seen:
        yield from _models(annotation.__value__, seen | {annotation})
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (), annotation
    else:
        origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
        steps: dict[Any, tuple[tuple[str | int, ...], slice]] = {
            dict: (("x",), slice(1, 2)), list: ((0,), slice(0, 1)), typing.Annotated: ((), slice(0, 1)),
        }  # fmt: skip
        step, which = steps.get(origin, ((), slice(None)))
        for part in inner[which]:
            for way, model in _models(part, seen):
                yield (*step, *way), model


def misspelled(name: str) -> str:
    """Return a name as hasty fingers write it: two letters swapped, or the last one doubled."""
    swapped = f"{name[0]}{name[2]}{name[1]}{name[3:]}" if len(name) > 3 else name
    return swapped if swapped != name else f"{name}{name[-1]}"


def problems_by_stage(tmp_path: Path, stages: dict[str, Any]) -> dict[str, list[Problem]]:
    """Return what is said of each stage, without what isn't about what it sets.

    A load ends at a hundred problems, so there are a few stages in each file.
    """
    path = tmp_path / "pipeline.yaml"
    said: dict[str, list[Problem]] = {name: [] for name in stages}
    names = list(stages)
    for some in (names[at : at + 12] for at in range(0, len(names), 12)):
        pipeline = {"version": 1, "name": "all", "stages": {name: stages[name] for name in some}}
        path.write_text(json.dumps(pipeline))
        with pytest.raises(SpecError, match="stage") as error:
            load(path, environ={})
        _sort(error.value.problems, said)
    return said


def _sort(problems: Iterable[Problem], said: dict[str, list[Problem]]) -> None:
    for problem in problems:
        found = re.search(r"stage '(\w+)'", problem.message)
        if found and not re.search(r" needs (the input )?'", problem.message):
            said[found[1]].append(problem)


def test_every_misspelled_parameter_gets_the_nearest_name(tmp_path: Path) -> None:
    every = {f"s{index}": field for index, field in enumerate(fields())}
    names = {id_: misspelled(str(field.path[-1])) for id_, field in every.items()}
    said = problems_by_stage(tmp_path, {i: field.written([1], names[i]) for i, field in every.items()})
    for id_, field in every.items():
        place = ".".join(map(str, (*field.path[:-1], names[id_])))
        (problem,) = said[id_]
        assert problem.message == f"`with` of stage {id_!r} ({field.uses}) has no {place!r}"
        assert problem.fix == f"did you mean {field.path[-1]!r}?"
        assert problem.line == 1
        assert problem.column


@pytest.mark.slow
def test_every_wrong_type_is_said_in_one_plain_sentence(tmp_path: Path) -> None:
    stages: dict[str, Any] = {}
    of: dict[str, tuple[Field, Any]] = {}
    for field in fields():
        for value in ([[1]], "a b", 7.5, None, {"a b": {"a b": None}}):
            id_ = f"s{len(stages)}"
            stages[id_], of[id_] = field.written(value), (field, value)
    said = problems_by_stage(tmp_path, stages)
    texts = [problem for found in said.values() for problem in found]
    assert len(texts) > len(stages) / 2
    for id_, problems in said.items():
        field, value = of[id_]
        for problem in problems:
            assert not INTERNAL.search(problem.message.partition(" match the pattern ")[0]), problem
            own = problem.message.startswith(f"`with` of stage {id_!r} ({field.uses})")
            assert own or "Code" in str(field.annotation) or "needs the input" in problem.message, problem
        assert len({p.message for p in problems}) == len(problems) <= 2, (field, value, problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vresion: 1", r"p.yaml:1:1: the pipeline has no 'vresion' \(did you mean 'version'\?\)"),
        ("Stages: {}", r"has no 'Stages' \(did you mean 'stages'\?\)"),
        ("vars: [a]", "the pipeline: 'vars' must be a mapping, not a list"),
        ("env: 3", "the pipeline: 'env' must be a mapping, not 3"),
        ("target: {liev: true}", r"the target has no 'liev' \(did you mean 'live'\?\)"),
        ("target: [a]", "'target' must be a mapping, not a list"),
        ("cache: {remtoe: x}", r"has no 'cache.remtoe' \(did you mean 'remote'\?\)"),
        ("executor: {nmae: ray}", r"has no 'nmae' \(did you mean 'name'\?\)"),
        ("executor: {name: rya}", r"'name' must be 'local' or 'ray', not 'rya' \(did you mean 'ray'\?\)"),
    ],
)
def test_what_is_wrong_at_the_top_gets_the_nearest_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        f"{text}\n" + "version: 1\nname: x\nstages: {a: {uses: run.command, with: {command: b}}}\n"
    )
    with pytest.raises(SpecError, match=said):
        load(path, environ={})


def test_every_misspelled_key_of_a_stage_gets_the_nearest_name(tmp_path: Path) -> None:
    names = [field.alias or name for name, field in StageSpec.model_fields.items() if name != "uses"]
    resources = ["cpu", "memory", "gpu", "custom"]
    stages = {f"a{n}": {"uses": "run.command", misspelled(k): 1} for n, k in enumerate(names)}
    stages |= {
        f"b{n}": {"uses": "run.command", "resources": {misspelled(k): 1}} for n, k in enumerate(resources)
    }
    said = problems_by_stage(tmp_path, stages)
    for (id_, problems), name in zip(said.items(), names + resources, strict=True):
        (problem,) = problems
        assert problem.fix == f"did you mean {name!r}?", (id_, problem)


def test_a_name_that_an_overlay_or_an_option_misspells_gets_the_nearest(project: Project) -> None:
    project.pipeline("hello: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: '${{ vars.end }}'}}",
                     head="vars: {end: x}\n")  # fmt: skip
    for number, (over, said) in enumerate(
        {
            "stages.helo.with.suffix": "stage 'helo' needs 'uses': the stage type, e.g. onnx.export "
            "(did you mean 'hello'?)",
            "stages.hello.wiht.suffix": "stage 'hello' has no 'wiht' (did you mean 'with'?)",
            "stages.hello.with.sufix": "`with` of stage 'hello' (text.upper) has no 'sufix' "
            "(did you mean 'suffix'?)",
            "vars.ned": "nothing refers to vars.ned (did you mean 'end'?)",
            "stgaes.hello": "the pipeline has no 'stgaes' (did you mean 'stages'?)",
        }.items()
    ):
        value: Any = "x"
        for name in reversed(over.split(".")):
            value = {name: value}
        overlay = project.write(f"{number}.yaml", json.dumps(value))
        for given in ({"sets": [f"{over}=x"]}, {"config": [overlay]}):
            with pytest.raises(SpecError, match=re.escape(said)) as error:
                load(project.folder / "pipeline.yaml", environ={}, **given)
            where = error.value.problems[0].where
            assert where == (
                f"--set {over}=x" if "sets" in given else f"{overlay}:1:{where.rpartition(':')[2]}"
            )
    assert load(project.folder / "pipeline.yaml", sets=["vars.end=y"], environ={}).graph.stages
