"""What an action key holds, and how two of them differ."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from deploy_runner import errors
from deploy_runner.engine.keys import (
    Change,
    KeyEnvironment,
    action_key,
    canonical,
    differences,
    preimage,
    suffix_of,
)
from deploy_runner.types import (
    SCHEMA_VERSION,
    Artifact,
    Mark,
    OutputSpec,
    PathSource,
    RefSource,
    Resources,
    SourceFile,
    StageNode,
)
from deploy_runner.usercode.installed import normal


def test_the_canonical_form_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert canonical({"a": "é", "b": 1}) == canonical({"b": 1, "a": "é"})
    assert canonical("\ud800") == b'"\xed\xa0\x80"'
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


def test_a_preimage_calls_every_component_by_its_name() -> None:
    node = NODE._replace(inputs={"text": NODE.inputs["text"], "tool": PathSource("tool")})
    inputs = INPUTS | {"tool": Artifact("b" * 64, "file", 6, executable=True)}
    assert preimage(node, inputs, {"text": ".txt", "tool": ""}, Machine()) == {
        "schema": SCHEMA_VERSION,
        "uses": "text.upper",
        "implementation": {"texts.py": hashlib.sha256(b"stages/texts.py").hexdigest()},
        "params": {"suffix": "é", "times": 2},
        "inputs": {"text": ["a" * 64, "file", ".txt"], "tool": ["b" * 64, "file", ""]},
        "outputs": {"text": ["out.txt", "file"]},
        "code": {"step.py": hashlib.sha256(b"step.py").hexdigest()},
        "packages": {"no-such-package": "absent"},
        "env": {"LEVEL": "3"},
        "facets": {"arch": "x86_64"},
        "target": {"name": "local"},
        "trust": True,
        "executable": {"tool": True},
    }


def test_a_preimage_has_no_empty_component() -> None:
    bare = NODE._replace(code=(), packages=(), env={}, facets=(), target={}, trust=False)
    parts = ["schema", "uses", "implementation", "params", "inputs", "outputs"]
    assert list(preimage(bare, INPUTS, {"text": ".txt"}, Machine())) == parts


SOURCE = SourceFile("step.py", "elsewhere/step.py")


@pytest.mark.parametrize(
    ("component", "changed"),
    [
        ("the stage type", lambda: key(NODE._replace(uses="text.lower"))),
        ("a parameter's value", lambda: key(NODE._replace(params={"suffix": "é", "times": 3}))),
        ("a parameter's type", lambda: key(NODE._replace(params={"suffix": "é", "times": "2"}))),
        ("an input's content", lambda: key(inputs={"text": Artifact("b" * 64, "file", 5)})),
        ("an input's kind", lambda: key(inputs={"text": Artifact("a" * 64, "folder", 5)})),
        ("an input's executable bit", lambda: key(inputs={"text": INPUTS["text"]._replace(executable=True)})),
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
        NODE._replace(max_parallel=2),
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
                "converges", "resources", "mark", "lineage", "max_parallel"}  # fmt: skip
    assert set(StageNode._fields) == counted | left_out


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("in.txt", ".txt"),
        ("a.b/data", ""),
        ("a/b.c/data", ""),
        ("a.b/c.d/x.npz", ".npz"),
        ("x.tar.gz", ".tar.gz"),
        ("a.b/x.y.tar.gz", ".tar.gz"),
        ("x.tar.bz2", ".bz2"),
        ("d/.hidden", ""),
        ("x.y", ".y"),
        ("folder", ""),
    ],
)
def test_a_staged_file_keeps_its_suffix(path: str, suffix: str) -> None:
    node = NODE._replace(inputs={"own": PathSource(path), "made": RefSource("b", "text")})
    producer = NODE._replace(id="b", outputs={"text": OutputSpec(path, "file")})
    assert suffix_of(node, "own", {}) == suffix
    assert suffix_of(node, "made", {"b": producer}) == suffix


LINKED = NODE._replace(inputs={"text": NODE.inputs["text"], "made": RefSource("b", "out")})


@pytest.mark.parametrize(
    ("part", "old", "new", "component", "sentence"),
    [
        ("params", {"opset": 17}, {"opset": 18}, "opset", "`with.opset` 17 → 18"),
        ("params", {"same": 0, "n": {"b": 0, "a": 1}}, {"same": 0, "n": {"b": 0, "a": 2}}, "n.a", "`with.n.a` 1 → 2"),
        ("params", {"n": {"a": 1}}, {"n": [1]}, "n", '`with.n` {"a": 1} → [1]'),
        ("params", {"n": [1]}, {"n": {"a": 1}}, "n", '`with.n` [1] → {"a": 1}'),
        ("params", {"t": {"$secret": "A"}}, {"t": {"$secret": "B"}}, "t", '`with.t` {"$secret": "A"} → {"$secret": "B"}'),
        ("params", {"s": "é"}, {}, "s", '`with.s` "é" → none'),
        ("params", {}, {"s": "x" * 58}, "s", f'`with.s` none → "{"x" * 58}"'),
        ("params", {}, {"s": "x" * 59}, "s", f'`with.s` none → "{"x" * 56}…'),
        ("inputs", {"text": [1]}, {"text": [2]}, "text", "the input `text`: in.txt changed"),
        ("inputs", {"made": [1]}, {"made": [2]}, "made", "the input `made`: the output `out` of stage b changed"),
        ("inputs", {"gone": [1]}, {"gone": [2]}, "gone", "the input `gone` changed"),
        ("inputs", {}, {"text": [2]}, "text", "the input `text` was added"),
        ("inputs", {"text": [1]}, {}, "text", "the input `text` was removed"),
        ("executable", None, {"text": True}, "text", "the input `text` is executable now"),
        ("executable", {"text": True}, None, "text", "the input `text` is not executable any more"),
        ("implementation", {"x.py": "1"}, {"x.py": "2"}, "x.py", "the stage's code x.py changed"),
        ("implementation", {}, {"x.py": "2"}, "x.py", "the stage's code x.py was added"),
        ("code", {"x.py": "1"}, {"x.py": "2"}, "x.py", "code x.py changed"),
        ("code", {"x.py": "1"}, None, "x.py", "code x.py is no longer used"),
        ("packages", {"onnx": "1"}, {"onnx": "2"}, "onnx", "onnx 1 → 2"),
        ("packages", {"onnx": "1"}, None, "onnx", "onnx 1 → unused"),
        ("packages", None, {"onnx": "2"}, "onnx", "onnx unknown → 2"),
        ("env", {"LEVEL": "3"}, {"LEVEL": "4"}, "LEVEL", 'the variable LEVEL "3" → "4"'),
        ("facets", {"isa": "avx2"}, {"isa": "sve"}, "isa", 'the platform\'s isa "avx2" → "sve"'),
        ("target", {"name": "local"}, {"name": "live"}, "name", 'the target\'s name "local" → "live"'),
        ("outputs", {"o": ["a", "file"]}, {"o": ["b", "file"]}, "o", 'the output o ["a", "file"] → ["b", "file"]'),
        ("outputs", {"o": ["a", "file"]}, ["a"], "", 'the output {"o": ["a", "file"]} → ["a"]'),
        ("uses", "text.upper", "text.lower", "", 'the stage type "text.upper" → "text.lower"'),
        ("trust", None, True, "", "trust none → true"),
        ("lineage", "1", "2", "", "the provenance of its inputs changed"),
        ("schema", 1, 2, "", "the key format of deploy-runner changed"),
    ],
)  # fmt: skip
def test_a_difference_is_a_sentence(part: str, old: Any, new: Any, component: str, sentence: str) -> None:
    """What is equal before and after says nothing."""
    before: dict[str, Any] = {"alike": [1], part: old, "zone": {"a": 1}}
    after: dict[str, Any] = {"alike": [1], part: new, "zone": {"a": 1}}
    for image in (before, after):
        if image[part] is None:
            del image[part]
    (change,) = differences(before, after, LINKED.inputs)
    assert str(change) == change.sentence == sentence
    assert change.component == (f"{part}.{component}" if component else part)


def test_a_difference_holds_both_values() -> None:
    old: dict[str, Any] = {"params": {"n": {"a": 1}}, "schema": 1}
    new: dict[str, Any] = {"params": {"n": {"a": 2}}, "schema": 2, "trust": True}
    assert differences(old, new, NODE.inputs) == [
        Change("params.n.a", 1, 2, "`with.n.a` 1 → 2"),
        Change("schema", 1, 2, "the key format of deploy-runner changed"),
        Change("trust", None, True, "trust none → true"),
    ]


def test_every_difference_is_said_in_the_order_of_the_parts() -> None:
    old: dict[str, Any] = {"params": {"opset": 17, "n": {"a": 1}, "same": 1}, "code": {"m.py": "1"}}
    new: dict[str, Any] = {
        "params": {"same": 1, "n": {"a": 2}, "opset": 18},
        "code": {"m.py": "2"},
        "trust": True,
    }
    assert [change.component for change in differences(old, new, NODE.inputs)] == [
        "params.opset",
        "params.n.a",
        "code.m.py",
        "trust",
    ]


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n.endswith("Error") and n != "SpecError"])
def test_every_error_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("what is wrong", fix="how to mend it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "what is wrong (how to mend it)")


def test_a_spec_error_survives_pickling_with_its_problems() -> None:
    error = errors.SpecError([errors.Problem("m", "f", 1, 2, "x")])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == "f:1:2: m (x)"
