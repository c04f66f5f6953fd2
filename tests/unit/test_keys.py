"""What an action key holds, and how two of them differ."""

from __future__ import annotations

import hashlib
import pickle

import pytest

from deploy_runner import errors
from deploy_runner.keys import KeyEnvironment, action_key, canonical, differences, preimage
from deploy_runner.types import Artifact, OutputSpec
from tests.conftest import Project
from tests.unit.test_build import compile_


def test_the_canonical_form_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert canonical({"a": "é", "b": 1}) == canonical({"b": 1, "a": "é"})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


def test_a_golden_key() -> None:
    image = {"schema": 1, "uses": "text.upper", "params": {"suffix": ""}, "inputs": {}}
    text = '{"inputs":{},"params":{"suffix":""},"schema":1,"uses":"text.upper"}'
    assert action_key(image) == hashlib.sha256(text.encode()).hexdigest()  # type: ignore[arg-type]


def test_everything_that_outputs_depend_on_is_in_the_key_and_nothing_else(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: x}}")
    node = compile_(project).stages["a"]
    environment = KeyEnvironment(lambda path: "f" * 64)
    inputs = {"text": Artifact("a" * 64, "file", 5)}

    def key(changed: object = node, given: object = inputs) -> str:
        return action_key(preimage(changed, given, {"text": ".txt"}, environment))  # type: ignore[arg-type]

    base = key()
    assert key(node._replace(params={"suffix": "y"})) != base
    assert key(node._replace(packages=("pydantic",))) != base
    assert key(node._replace(facets=("isa",))) != base
    assert key(node._replace(env={"A": "1"})) != base
    assert key(node._replace(trust=True)) != base
    assert key(node._replace(target={"name": "x"})) != base
    assert key(node._replace(outputs={"text": OutputSpec("other.txt", "file")})) != base
    assert key(given={"text": Artifact("b" * 64, "file", 5)}) != base
    assert key(node._replace(id="b", base="b", needs=("z",), secrets=("S",))) == base
    assert key(node._replace(resources=node.resources._replace(cpu=8, timeout_s=3.0))) == base


def test_differences_are_sentences(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    node = compile_(project).stages["a"]
    old = {"params": {"opset": 17, "n": {"a": 1}}, "packages": {"onnxruntime": "1.31.0"}, "inputs": {"text": [1]},
           "implementation": {"x.py": "1"}, "code": {"m.py": "1"}}  # fmt: skip
    new = {"params": {"opset": 18, "n": {"a": 2}}, "packages": {"onnxruntime": "1.32.0"}, "inputs": {"text": [2]},
           "implementation": {"x.py": "2"}, "code": {"m.py": "2"}, "trust": True}  # fmt: skip
    assert [str(change) for change in differences(old, new, node)] == [  # type: ignore[arg-type]
        "`with.opset` 17 → 18",
        "`with.n.a` 1 → 2",
        "onnxruntime 1.31.0 → 1.32.0",
        "the input `text`: in.txt changed",
        "the stage's code x.py changed",
        "code m.py changed",
        "trust none → true",
    ]


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n not in ("Problem", "SpecError")])
def test_every_error_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("what is wrong", fix="how to mend it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "what is wrong (how to mend it)")


def test_a_spec_error_survives_pickling_with_its_problems() -> None:
    error = errors.SpecError([errors.Problem("m", "f", 1, 2, "x")])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == "f:1:2: m (x)"
