"""What is to be made, and why: every verdict on three stages in a row, made by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.engine.keys import action_key
from deploy_runner.engine.plan import Action, Decision, Planner
from deploy_runner.errors import SpecError, StageError
from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.cas import Store
from deploy_runner.types import Artifact, Graph, Mark, OutputSpec, PathSource, RefSource, Resources, StageNode

NODE = StageNode(
    id="a", base="a", uses="text.upper", matrix={}, params={"times": 1}, inputs={}, outputs={}, needs=(), env={},
    secrets=(), module="texts", class_name="Upper", stage_dir="stages", implementation=(), code=(), packages=(),
    facets=(), preload=(), network=False, converges=False, trust=False, resources=Resources(), target={},
    mark=Mark("p.yaml", 1, 1),
)  # fmt: skip


def node(name: str, **inputs: PathSource | RefSource) -> StageNode:
    outputs = {"text": OutputSpec(f"{name}.txt", "file"), "more": OutputSpec("more.txt", "file", True)}
    return NODE._replace(id=name, base=name, inputs=inputs, outputs=outputs)


class Bench:
    """A project with a store, and three stages: `a` reads in.txt, `b` reads `a` and side.txt, `c` reads `b`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "in.txt").write_text("hello")
        (folder / "side.txt").write_text("aside")
        self.store = Store(folder / "home")
        self.nodes = {
            "a": node("a", text=PathSource("in.txt", "file", Mark("p.yaml", 4, 9))),
            "b": node("b", text=RefSource("a", "text", "file"), side=PathSource("side.txt", "file")),
            "c": node("c", text=RefSource("b", "text", "file")),
        }
        self.live = False

    def change(self, name: str, **fields: Any) -> None:
        self.nodes[name] = self.nodes[name]._replace(**fields)

    def planner(self) -> Planner:
        graph = Graph("demo", str(self.folder), "p.yaml", dict(self.nodes), live=self.live)
        return Planner(graph, self.store, ("p.yaml",))

    def make(self, *names: str, text: Mapping[str, str] | None = None) -> dict[str, Decision]:
        """Run stages: put what they would make, and the records."""
        planner, decisions = self.planner(), {}
        made: dict[str, Mapping[str, Artifact]] = {}
        for name in names or tuple(self.nodes):
            decisions[name] = decision = planner.decide(self.nodes[name], made)
            path = self.store.new_tmp() / name
            path.write_text((text or {}).get(name, f"made by {name}"))
            made[name] = {"text": self.store.ingest(path)}
            self.store.records.put(
                ActionRecord(decision.key, NODE.uses, made[name], {"n": 1}, decision.preimage)
            )
        planner.last.update({name: decision.key for name, decision in decisions.items()})
        return decisions

    def plan(self, targets: Sequence[str] | None = None) -> dict[str, tuple[str, str]]:
        return {a.stage: (a.state, a.reason) for a in self.planner().plan(targets).actions}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


HIT = ("hit", "")


def test_what_was_never_made_is_a_miss_and_the_rest_waits(bench: Bench) -> None:
    assert bench.plan() == {
        "a": ("miss", "not built before"),
        "b": ("waits", "for a"),
        "c": ("waits", "for b"),
    }
    assert bench.plan(["a"]) == {"a": ("miss", "not built before")}
    assert bench.planner().plan().actions[1] == Action("b", "waits", "", "for a")
    found = {node.id: (decision is None, waiting) for node, decision, waiting in bench.planner().decisions()}
    assert found == {"a": (False, []), "b": (True, ["a"]), "c": (True, ["b"])}


def test_what_is_made_is_a_hit_with_its_record(bench: Bench) -> None:
    made = bench.make()
    assert bench.plan() == {"a": HIT, "b": HIT, "c": HIT}
    actions = bench.planner().plan().actions
    assert actions[1] == Action("b", "hit", made["b"].key, "")
    for node_, decision, waiting in bench.planner().decisions(["b"]):
        assert decision is not None
        assert decision.record is not None
        assert (decision.state, decision.key, waiting) == ("hit", made[node_.id].key, [])
        assert decision.preimage == made[node_.id].preimage
        assert decision.record.figures == {"n": 1}
        assert decision.lineage == {}


def test_a_decision_says_what_the_key_was_made_of(bench: Bench) -> None:
    decision = bench.make()["b"]
    assert decision.key == action_key(decision.preimage)
    assert decision.inputs["side"] == Artifact(
        bench.store.memo.digest(str(bench.folder / "side.txt")), "file", 5
    )
    assert decision.inputs["text"].size == len("made by a")
    assert decision.suffixes == {"text": ".txt", "side": ".txt"}
    assert decision.preimage["inputs"] == {
        name: [artifact.digest, artifact.kind, ".txt"] for name, artifact in decision.inputs.items()
    }
    assert (decision.state, decision.reason, decision.record) == ("miss", "", None)


def test_a_change_is_named_and_what_needs_it_waits(bench: Bench) -> None:
    bench.make()
    bench.change("b", params={"times": 3})
    assert bench.plan() == {"a": HIT, "b": ("miss", "`with.times` 1 → 3"), "c": ("waits", "for b")}


def test_every_change_is_named(bench: Bench) -> None:
    bench.make()
    bench.change("a", params={"times": 3}, env={"LEVEL": "4"})
    (bench.folder / "in.txt").write_text("other")
    said = '`with.times` 1 → 3; the input `text`: in.txt changed; the variable LEVEL none → "4"'
    assert bench.plan()["a"] == ("miss", said)


def test_the_same_bytes_stop_the_wave(bench: Bench) -> None:
    bench.make()
    bench.change("a", params={"times": 3})
    bench.make("a")
    assert bench.plan() == {"a": HIT, "b": HIT, "c": HIT}


def test_a_stage_that_waits_for_several_names_those_that_are_not_made(bench: Bench) -> None:
    bench.change("c", inputs={"x": RefSource("b", "text"), "y": RefSource("a", "text")})
    bench.make("a")
    assert bench.plan()["c"] == ("waits", "for b")
    bench.change("a", params={"times": 3})
    assert bench.plan()["c"] == ("waits", "for b, a")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_lost_output_is_healed(bench: Bench, damage: str) -> None:
    made = bench.make()
    record = bench.store.records.get(made["b"].key)
    assert record is not None
    path = bench.store.object_path(record.outputs["text"].digest)
    path.unlink()
    if damage == "damaged":
        path.write_text("other")
    reason = f"the output `text` is {damage} in the store"
    assert bench.plan() == {"a": HIT, "b": ("heal", reason), "c": ("waits", "for b")}
    (_, decision, _) = list(bench.planner().decisions(["b"]))[1]
    assert decision is not None
    assert (decision.record, decision.key) == (record, made["b"].key)
    explanation = bench.planner().explain("b")
    assert (explanation.state, explanation.reason, explanation.changes) == ("heal", reason, ())
    assert explanation.why == reason
    assert bench.planner().explain("c").reason == f"for b: {reason}"


def test_a_damaged_record_is_a_miss_that_says_so(bench: Bench) -> None:
    made = bench.make()
    for path in (bench.folder / "home/actions").rglob("*.json"):
        if made["b"].key.endswith(path.stem):
            path.write_bytes(b"damaged")
    reason = "its action record is damaged"
    assert bench.plan() == {"a": HIT, "b": ("miss", reason), "c": ("waits", "for b")}
    explanation = bench.planner().explain("b")
    assert (explanation.state, explanation.reason, explanation.why) == ("miss", reason, reason)


def test_a_record_that_is_gone_leaves_nothing_to_compare(bench: Bench) -> None:
    made = bench.make()
    bench.store.records.remove(made["b"].key)
    assert bench.plan()["b"] == ("miss", "not built before")
    assert bench.planner().explain("b").reason == "not built before"
    bench.store.records.put(ActionRecord("0" * 64, NODE.uses, {}, {}, made["b"].preimage))
    bench.planner().last.update({"b": "0" * 64})
    assert bench.plan()["b"] == ("miss", "its action record is missing")


def test_a_live_push_is_asked_each_time(bench: Bench) -> None:
    bench.change("c", converges=True)
    made = bench.make()
    assert bench.plan()["c"] == HIT
    bench.live = True
    reason = "a live push is compared with the remote each time"
    assert bench.plan() == {"a": HIT, "b": HIT, "c": ("converge", reason)}
    decision = list(bench.planner().decisions())[2][1]
    assert decision is not None
    assert (decision.state, decision.key, decision.reason) == ("converge", made["c"].key, reason)
    assert decision.record is None
    explanation = bench.planner().explain("c")
    assert (explanation.state, explanation.reason, explanation.changes) == ("converge", reason, ())


def test_a_lineage_holds_every_stage_before_and_is_in_the_key(bench: Bench) -> None:
    without = bench.make()
    bench.change("c", lineage=True)
    made = bench.make()
    assert list(made["c"].lineage) == ["a", "b"]
    sizes = {name: len(f"made by {name}") for name in "ab"}
    for name, sources in (("a", {"text": "in.txt"}), ("b", {"side": "side.txt"})):
        lineage: Any = made["c"].lineage[name]
        assert lineage["sources"] == sources
        assert lineage["made"]["text"][1:] == ["file", sizes[name]]
        assert lineage["params"] == {"times": 1}
    assert made["c"].preimage["lineage"] == action_key(made["c"].lineage)
    assert made["c"].key != without["c"].key
    assert made["b"].lineage == {}
    assert bench.plan()["c"] == HIT
    bench.change("a", params={"times": 3})
    bench.make("a")
    assert bench.plan() == {"a": HIT, "b": HIT, "c": ("miss", "the provenance of its inputs changed")}


def test_a_lineage_goes_with_every_decision(bench: Bench) -> None:
    bench.change("c", lineage=True, converges=True)
    lineage = bench.make()["c"].lineage
    for bench.live in (False, True):
        decision = list(bench.planner().decisions())[2][1]
        assert decision is not None
        assert decision.lineage == lineage
    bench.live = False
    for path in (bench.folder / "home/cas").rglob("*"):
        if path.is_file() and path.read_bytes() == b"made by c":
            path.unlink()
    decision = list(bench.planner().decisions())[2][1]
    assert decision is not None
    assert (decision.state, decision.lineage) == ("heal", lineage)


def test_an_explanation_names_what_stands_in_the_way(bench: Bench) -> None:
    made = bench.make()
    found = bench.planner().explain("c")
    assert (found.state, found.reason) == ("hit", f"nothing changed; action key {made['c'].key}")
    assert (found.stage, found.changes, found.why) == ("c", (), found.reason)
    assert found.decision is not None
    bench.change("b", params={"times": 3})
    found = bench.planner().explain("b")
    assert (found.stage, found.state, found.reason) == ("b", "miss", "changed since the last run")
    assert [str(change) for change in found.changes] == ["`with.times` 1 → 3"]
    assert found.why == "`with.times` 1 → 3"
    assert found.decision is not None
    found = bench.planner().explain("c")
    assert (found.stage, found.state, found.reason) == ("c", "waits", "for b: `with.times` 1 → 3")
    assert (found.why, found.changes, found.decision) == ("b: `with.times` 1 → 3", (), None)


def test_an_explanation_names_every_root(bench: Bench) -> None:
    bench.change("c", inputs={"x": RefSource("b", "text"), "y": RefSource("d", "text")})
    last = bench.nodes.pop("c")
    bench.nodes |= {"d": node("d", text=PathSource("side.txt", "file")), "c": last}
    assert bench.planner().explain("c").reason == "for a: not built before; d: not built before"
    bench.nodes["other"] = node("other", text=PathSource("gone.txt", "file"))
    assert bench.planner().explain("a").stage == "a"


def test_a_lineage_names_each_stage_once(bench: Bench) -> None:
    last = bench.nodes.pop("c")
    bench.nodes["d"] = node("d", text=PathSource("side.txt", "file"))
    inputs = {"x": RefSource("d", "text"), "y": RefSource("a", "text"), "z": RefSource("b", "text")}
    bench.nodes["c"] = last._replace(inputs=inputs, lineage=True)
    assert list(bench.make()["c"].lineage) == ["a", "b", "d"]


def test_what_changed_of_the_known_inputs_of_a_waiting_stage_is_said(bench: Bench) -> None:
    bench.change("c", inputs={"x": RefSource("b", "text"), "y": RefSource("a", "text")})
    bench.make()
    bench.change("a", params={"times": 2})
    bench.make("a", text={"a": "another"})
    found = bench.planner().explain("c")
    assert found.reason == "for b: the input `text`: the output `text` of stage a changed"
    assert [str(change) for change in found.changes] == [
        "the input `y`: the output `text` of stage a changed"
    ]


def test_what_changed_about_a_waiting_stage_itself_is_said_without_its_unknown_inputs(bench: Bench) -> None:
    bench.make()
    bench.change("a", params={"times": 3})
    bench.change("b", params={"times": 5})
    (bench.folder / "side.txt").write_text("changed")
    found = bench.planner().explain("b")
    assert (found.state, found.reason) == ("waits", "for a: `with.times` 1 → 3")
    assert [str(change) for change in found.changes] == [
        "`with.times` 1 → 5",
        "the input `side`: side.txt changed",
    ]


def test_a_waiting_stage_that_was_never_made_has_no_changes(bench: Bench) -> None:
    found = bench.planner().explain("b")
    assert (found.state, found.reason, found.changes) == ("waits", "for a: not built before", ())
    assert bench.planner().explain("a").reason == "not built before"
    assert bench.planner().explain("a").changes == ()


def test_of_the_stages_that_one_waits_for_a_hundred_are_explained(bench: Bench) -> None:
    for count, end in ((100, "s99: not built before"), (101, "s99: not built before; and others")):
        bench.nodes = {f"s{i}": node(f"s{i}") for i in range(count)}
        bench.nodes |= {"z": node("z")._replace(needs=tuple(bench.nodes))}
        found = bench.planner().explain("z")
        assert found.causes == tuple(f"s{i}" for i in range(count))
        assert found.reason.startswith("for s0: not built before; s1: not built before; ")
        assert found.reason.endswith(f"; {end}")


def refused(bench: Bench, message: str, place: str) -> None:
    with pytest.raises(SpecError, match=rf"\A{re.escape(f'{place}: {message}')}\Z"):
        bench.planner().plan()


def test_an_input_that_is_gone_or_something_else_is_refused_at_its_place(bench: Bench) -> None:
    file = bench.folder / "in.txt"
    file.unlink()
    refused(bench, "in.txt does not exist", "p.yaml:4:9")
    file.mkdir()
    refused(bench, "in.txt is now a folder, it was a file", "p.yaml:4:9")
    file.rmdir()
    os.symlink("/etc/passwd", file)
    refused(
        bench, f"{file} points outside the project, to /etc/passwd (copy it into the project)", "p.yaml:4:9"
    )
    file.unlink()
    os.symlink("in.txt", file)
    refused(bench, "in.txt is a symbolic link that leads back to itself", "p.yaml:4:9")


def test_an_input_without_a_place_of_its_own_is_refused_at_its_stages(bench: Bench) -> None:
    bench.make()
    (bench.folder / "side.txt").unlink()
    refused(bench, "side.txt does not exist", "p.yaml:1:1")


def test_code_that_is_gone_is_refused_at_its_stage(bench: Bench) -> None:
    from deploy_runner.types import SourceFile

    gone = str(bench.folder / "gone.py")
    bench.change("a", code=(SourceFile("gone.py", gone),))
    refused(bench, f"{gone} can't be read: No such file or directory", "p.yaml:1:1")


def test_an_optional_output_that_was_not_made_is_missed_by_name(bench: Bench) -> None:
    bench.make()
    bench.change("b", inputs={"text": RefSource("a", "more")})
    with pytest.raises(StageError, match=r"\Astage a produced no output `more`, which b needs\Z"):
        bench.planner().plan()


def test_a_file_is_read_once_for_all_stages(bench: Bench) -> None:
    bench.change("b", inputs={"text": PathSource("in.txt", "file")})
    planner = bench.planner()
    before = planner.decide(bench.nodes["a"], {}).inputs["text"]
    (bench.folder / "in.txt").write_text("changed meanwhile")
    assert planner.decide(bench.nodes["b"], {}).inputs["text"] == before


def test_a_plan_writes_down_what_it_has_hashed(bench: Bench) -> None:
    for name in ("in.txt", "side.txt"):
        os.utime(bench.folder / name, (1, 1))
    bench.planner().plan()
    assert (bench.folder / "home/stat.sqlite").exists()


def test_a_shared_store_is_asked_for_all_ready_stages_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {f"w{n}": node(f"w{n}", text=RefSource("a", "text", "file")) for n in range(3)}
    bench.nodes = {**bench.nodes, **wide, "z": node("z", text=PathSource("side.txt", "file"))}
    keys = {decision.key: name for name, decision in bench.make().items()}
    asked: list[list[str]] = []
    monkeypatch.setattr(bench.store, "shares", True)
    monkeypatch.setattr(bench.store, "look_up", lambda found: asked.append([keys[key] for key in found]))
    assert set(bench.plan().values()) == {HIT}
    assert asked == [["a", "z"], ["b", "w0", "w1", "w2"], ["c"]]
    (bench.folder / "in.txt").write_text("other")
    keys[bench.planner().decide(bench.nodes["a"], {}).key] = "other a"
    asked.clear()
    assert bench.plan()["w0"] == ("waits", "for a")
    assert asked == [["other a", "z"]]
