"""What an action key holds, and how two of them differ."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping

import pytest

from deploy_runner import errors
from deploy_runner.engine.keys import KeyEnvironment, action_key, canonical, differences, preimage
from deploy_runner.types import Artifact, Mark, OutputSpec, PathSource, Resources, SourceFile, StageNode
from deploy_runner.usercode.installed import normal


def test_the_canonical_form_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert canonical({"a": "é", "b": 1}) == canonical({"b": 1, "a": "é"})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


NODE = StageNode(
    id="a", base="a", uses="text.upper", matrix={}, params={"suffix": "é", "times": 2},
    inputs={"text": PathSource("in.txt", "file", Mark("p.yaml", 1, 1))},
    outputs={"text": OutputSpec("out.txt", "file")}, needs=(), env={"LEVEL": "3"}, secrets=(),
    module="texts", class_name="Upper", stage_dir="stages",
    implementation=(SourceFile("texts.py", "stages/texts.py"),), code=(SourceFile("step.py", "step.py"),),
    packages=("no-such-package",), facets=("arch",), preload=(), network=False, converges=False, trust=True,
    resources=Resources(), target={"name": "local"}, mark=Mark("p.yaml", 1, 1),
)  # fmt: skip
INPUTS = {"text": Artifact("a" * 64, "file", 5)}


class Machine(KeyEnvironment):
    """A machine on which every file has its path's digest, whatever it runs on."""

    def __init__(self, arch: str = "x86_64", version: str = "absent") -> None:
        super().__init__(lambda path: hashlib.sha256(path.encode()).hexdigest())
        self._facets = {"arch": arch}
        self._versions = {normal("no-such-package"): version}


def key(
    node: StageNode = NODE, inputs: Mapping[str, Artifact] = INPUTS, suffix: str = ".txt",
    machine: KeyEnvironment | None = None,
) -> str:  # fmt: skip
    return action_key(preimage(node, inputs, dict.fromkeys(inputs, suffix), machine or Machine()))


def test_a_golden_key() -> None:
    """A key that changes makes everybody's artifacts anew: raise SCHEMA_VERSION and say so in the changelog."""
    assert key() == "e74c347af4d7e21dbc2614678eb9f4d66f1f3462ef3ec8ce1df8cdac84616e79"


SOURCE = SourceFile("step.py", "elsewhere/step.py")


@pytest.mark.parametrize(
    ("component", "changed"),
    [
        ("the stage type", lambda: key(NODE._replace(uses="text.lower"))),
        ("a parameter's value", lambda: key(NODE._replace(params={"suffix": "é", "times": 3}))),
        ("a parameter's type", lambda: key(NODE._replace(params={"suffix": "é", "times": "2"}))),
        ("an input's content", lambda: key(inputs={"text": Artifact("b" * 64, "file", 5)})),
        ("an input's kind", lambda: key(inputs={"text": Artifact("a" * 64, "folder", 5)})),
        ("an input's name", lambda: key(inputs={"more": INPUTS["text"]})),
        ("an input's suffix", lambda: key(suffix=".md")),
        ("an output's path", lambda: key(NODE._replace(outputs={"text": OutputSpec("other.txt", "file")}))),
        ("an output's kind", lambda: key(NODE._replace(outputs={"text": OutputSpec("out.txt", "folder")}))),
        ("an output's name", lambda: key(NODE._replace(outputs={"body": OutputSpec("out.txt", "file")}))),
        (
            "the implementation's content",
            lambda: key(NODE._replace(implementation=(SourceFile("texts.py", "x"),))),
        ),
        ("a file more of it", lambda: key(NODE._replace(implementation=(*NODE.implementation, SOURCE)))),
        ("the user's code", lambda: key(NODE._replace(code=(SOURCE,)))),
        ("a file less of it", lambda: key(NODE._replace(code=()))),
        ("a package", lambda: key(NODE._replace(packages=()))),
        ("a package's version", lambda: key(machine=Machine(version="1.0"))),
        ("a variable", lambda: key(NODE._replace(env={"LEVEL": "4"}))),
        ("a facet", lambda: key(NODE._replace(facets=()))),
        ("a facet's value", lambda: key(machine=Machine(arch="aarch64"))),
        ("the target", lambda: key(NODE._replace(target={"name": "live"}))),
        ("trust", lambda: key(NODE._replace(trust=False))),
    ],
)
def test_every_component_of_the_key_counts(component: str, changed: Callable[[], str]) -> None:
    assert changed() != key(), component


@pytest.mark.parametrize(
    "changed",
    [
        NODE._replace(id="b", base="b", mark=Mark("p.yaml", 7, 7)),
        NODE._replace(needs=("z",)),
        NODE._replace(secrets=("S",)),
        NODE._replace(matrix={"n": 1}),
        NODE._replace(resources=Resources(8, 1 << 30, 3.0)),
        NODE._replace(preload=("torch",)),
        NODE._replace(inputs={"text": PathSource("elsewhere.txt", "file", Mark("p.yaml", 2, 2))}),
        NODE._replace(params={"times": 2, "suffix": "é"}),
    ],
)
def test_nothing_else_is_in_the_key(changed: StageNode) -> None:
    assert key(changed) == key()


def test_a_component_that_is_added_to_a_stage_is_put_in_the_key_or_named_here() -> None:
    """Whoever adds a field to StageNode decides whether outputs depend on it."""
    counted = {"uses", "params", "inputs", "outputs", "implementation", "code", "packages", "facets", "env", "target",
               "trust"}  # fmt: skip
    left_out = {"id", "base", "matrix", "needs", "secrets", "module", "class_name", "stage_dir", "preload", "network",
                "converges", "resources", "mark", "lineage"}  # fmt: skip
    assert set(StageNode._fields) == counted | left_out


def test_differences_are_sentences() -> None:
    old = {"params": {"opset": 17, "n": {"a": 1}}, "packages": {"onnxruntime": "1.31.0"}, "inputs": {"text": [1]},
           "implementation": {"x.py": "1"}, "code": {"m.py": "1"}}  # fmt: skip
    new = {"params": {"opset": 18, "n": {"a": 2}}, "packages": {"onnxruntime": "1.32.0"}, "inputs": {"text": [2]},
           "implementation": {"x.py": "2"}, "code": {"m.py": "2"}, "trust": True}  # fmt: skip
    assert [str(change) for change in differences(old, new, NODE)] == [  # type: ignore[arg-type]
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
