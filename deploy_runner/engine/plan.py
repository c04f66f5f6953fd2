"""Graph + store → what to do, in order: a hit, or what made it a miss.

`Planner.decide` is the one judge: a run, a plan and an explanation ask it the same question, so
they can't disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, NamedTuple

from ..errors import DeployRunnerError, Problem, SpecError, StageError, StoreError
from ..pipeline.graph import select
from ..pipeline.identity import Files
from ..store.actions import ActionRecord, LastKeys
from ..store.cas import Store
from ..store.folders import link_problem, unread
from ..types import Artifact, Graph, Json, PathSource, StageNode
from .keys import Change, KeyEnvironment, action_key, differences, preimage, suffix_of

__all__ = ["MOST_CAUSES", "Action", "Decision", "Explanation", "Identity", "Plan", "Planner"]

Outputs = Mapping[str, Artifact]
MOST_CAUSES = 100
"""Of how many stages that one waits for an explanation says why they are out of date."""

Verdict = Literal["hit", "miss", "heal", "converge"]


class Decision(NamedTuple):
    """The verdict on one stage whose inputs are known, with the reason in words.

    `inputs` are the artifacts by flat input name. `record` is there on a hit and to be healed.
    """

    state: Verdict
    key: str
    preimage: Mapping[str, Json]
    inputs: Mapping[str, Artifact]
    suffixes: Mapping[str, str]
    reason: str = ""
    record: ActionRecord | None = None
    lineage: Mapping[str, Json] = {}


class Identity(NamedTuple):
    """The first fields of a Decision, and its lineage."""

    key: str
    preimage: Mapping[str, Json]
    inputs: Mapping[str, Artifact]
    suffixes: Mapping[str, str]
    lineage: Mapping[str, Json]


class Action(NamedTuple):
    """One stage of a plan; the state "waits" means that an input doesn't exist yet."""

    stage: str
    state: Verdict | Literal["waits"]
    key: str
    reason: str


class Plan(NamedTuple):
    """What a run would do, in order of execution."""

    actions: tuple[Action, ...]


class Explanation(NamedTuple):
    """Why a stage is a hit or a miss, with every component that differs from the last run.

    `decision` is None if a stage upstream is out of date; `causes` are then the stages that it waits for, and
    if there are more than `MOST_CAUSES`, only one more than that.
    """

    stage: str
    state: str
    reason: str
    changes: tuple[Change, ...] = ()
    decision: Decision | None = None
    causes: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """The reason in one line."""
        if self.decision is None:
            return self.reason.removeprefix("for ")
        return "; ".join(map(str, self.changes)) or self.reason


def _merged(causes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the causes together, one more than are shown at most.

    Each of 10,000 stages may wait for each of 10,000 others.
    """
    found: dict[str, str] = {}
    for some in causes:
        found |= some
        if len(found) > MOST_CAUSES:
            return dict(islice(found.items(), MOST_CAUSES + 1))
    return found


class _Ahead:
    """Which stages can be looked up together: each is returned once, with those that are ready as well."""

    def __init__(self, nodes: Sequence[StageNode]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._missing = {node.id: len(node.upstream) for node in nodes}
        self._followers: dict[str, list[str]] = {node.id: [] for node in nodes}
        for node in nodes:
            for need in node.upstream:
                self._followers[need].append(node.id)
        self._ready = {id_: None for id_, count in self._missing.items() if not count}

    def ready(self, node: StageNode) -> list[StageNode]:
        """Return all stages that are ready and were not returned yet, if `node` is one of them."""
        if node.id not in self._ready:
            return []
        found = [self._nodes[id_] for id_ in self._ready]
        self._ready.clear()
        return found

    def hit(self, node: StageNode) -> None:
        """Take notice that the outputs of a stage are known."""
        for follower in self._followers[node.id]:
            self._missing[follower] -= 1
            if not self._missing[follower]:
                self._ready[follower] = None


class Planner:
    """Judges the stages of one graph against one store, as both are now."""

    def __init__(self, graph: Graph, store: Store, files: Files) -> None:
        self.graph = graph
        self._store = store
        self.environment = KeyEnvironment(store.memo.digest)
        self._paths: dict[str, Artifact] = {}
        self._images: dict[str, Mapping[str, Json]] = {}
        self.last = LastKeys(store.home, "\0".join(files))

    def decide(self, node: StageNode, upstream: Mapping[str, Outputs]) -> Decision:
        """Return the verdict on a stage, given the outputs of the stages that it needs.

        Raises SpecError where a file of the project is missing, StageError where an upstream
        stage left out an optional output that this one needs.
        """
        identity = self.identify(node, upstream)
        key, *_, lineage = identity
        known = identity[:4]
        if node.converges and self.graph.live:
            reason = "a live push is compared with the remote each time"
            return Decision("converge", *known, reason, None, lineage)
        record = self._store.find(key)
        if record is None:
            return Decision("miss", *known, self._store.problem(key), None, lineage)
        reason = self._store.lack_of(record)
        if reason:  # A miss in effect; told apart, so that the run says that the store was damaged.
            return Decision("heal", *known, reason, record, lineage)
        return Decision("hit", *known, "", record, lineage)

    def identify(self, node: StageNode, upstream: Mapping[str, Outputs]) -> Identity:
        """Return the key of a stage, with what it was made of."""
        inputs = {name: self._input(node, name, upstream) for name in node.inputs}
        suffixes = {name: suffix_of(node, name, self.graph.stages) for name in inputs}
        try:
            image = preimage(node, inputs, suffixes, self.environment)
        except OSError as error:
            mark = node.mark
            message = f"{error.filename} can't be read: {error.strerror}"
            problem = Problem(message, mark.file, mark.line, mark.column, unread(error))
            raise SpecError([problem]) from None
        lineage = self._lineage(node, upstream) if node.lineage else {}
        if lineage:
            image["lineage"] = action_key(lineage)
        self._images[node.id] = image
        return Identity(action_key(image), image, inputs, suffixes, lineage)

    def give_up(self, key: str) -> None:
        """Take notice that the outputs of this action were not available: it is no hit any more."""
        self._store.give_up(key)

    @property
    def shares(self) -> bool:
        """Say whether it is worth while to look several stages up at once."""
        return self._store.shares

    def look_up(self, nodes: Sequence[StageNode], upstream: Mapping[str, Outputs]) -> None:
        """Have the store find the records of several stages at once, for `decide` to come."""
        keys = []
        for node in nodes:
            try:
                keys.append(self.identify(node, upstream)[0])
            except DeployRunnerError:
                continue  # `decide` says it.
        with suppress(DeployRunnerError):  # `decide` says that, too.
            self._store.look_up(keys)

    def _lineage(self, node: StageNode, upstream: Mapping[str, Outputs]) -> dict[str, Json]:
        """Return stage id → its pre-image, the sources of its inputs and its outputs, of all before it."""
        found: dict[str, Json] = {}
        pending = list(node.upstream)
        while pending:
            id_ = pending.pop()
            if id_ in found:
                continue
            before = self.graph.stages[id_]
            pending += before.upstream
            found[id_] = {
                **self._images[id_],
                "sources": {n: s.path for n, s in before.inputs.items() if isinstance(s, PathSource)},
                "made": {name: [a.digest, a.kind, a.size] for name, a in upstream[id_].items()},
            }
        return dict(sorted(found.items()))

    def _input(self, node: StageNode, name: str, upstream: Mapping[str, Outputs]) -> Artifact:
        source = node.inputs[name]
        if isinstance(source, PathSource):
            known = self._paths.get(source.path)
            if known is None:
                known = self._paths[source.path] = self._digest_path(node, source)
            return known
        outputs = upstream[source.stage]
        if source.output not in outputs:
            raise StageError(
                f"stage {source.stage} produced no output `{source.output}`, which {node.id} needs"
            )
        return outputs[source.output]

    def _digest_path(self, node: StageNode, source: PathSource) -> Artifact:
        mark = source.mark or node.mark
        path = f"{self.graph.root}/{source.path}"
        try:
            artifact = self._store.digest_path(path, self.graph.root)
        except FileNotFoundError:
            message, fix = f"{source.path} {link_problem(path) or 'does not exist'}", ""
        except OSError as error:
            shown = str(error.filename or source.path).removeprefix(f"{self.graph.root}/")
            said = link_problem(path) or f"can't be read: {error.strerror}"
            message, fix = f"{shown} {said}", unread(error)
        except StoreError as error:
            message, fix = error.message, error.fix
        else:
            if artifact.kind == source.kind:
                return artifact
            message, fix = f"{source.path} is now a {artifact.kind}, it was a {source.kind}", ""
        raise SpecError([Problem(message, mark.file, mark.line, mark.column, fix)])

    def plan(self, targets: Sequence[str] | None = None) -> Plan:
        """Return what a run of these targets would do now."""
        actions = []
        for node, decision, waiting in self.decisions(targets):
            if decision is None:
                actions.append(Action(node.id, "waits", "", f"for {', '.join(waiting)}"))
            else:
                actions.append(Action(node.id, decision.state, decision.key, self.why(node, decision)))
        return Plan(tuple(actions))

    def decisions(
        self, targets: Sequence[str] | None = None
    ) -> Iterator[tuple[StageNode, Decision | None, list[str]]]:
        """Yield each stage with its verdict, or with None and the stages that have to run before it."""
        made: dict[str, Outputs] = {}
        chosen = select(self.graph, targets)
        ahead = _Ahead([self.graph.stages[id_] for id_ in chosen]) if self.shares else None
        for id_ in chosen:
            node = self.graph.stages[id_]
            if ahead is not None and (ready := ahead.ready(node)):
                self.look_up(ready, made)
            waiting = [need for need in node.upstream if need not in made]
            decision = None if waiting else self.decide(node, made)
            if decision is not None and decision.state == "hit" and decision.record is not None:
                made[id_] = decision.record.outputs
                if ahead is not None:
                    ahead.hit(node)
            yield node, decision, waiting
        self._store.memo.flush()

    def why(self, node: StageNode, decision: Decision) -> str:
        """Return the reason for a miss in one line: what changed since the last run."""
        if decision.state == "hit" or decision.reason:
            return decision.reason
        changes = self.changes(node, decision)
        if changes is None:
            return "not built before"
        return "; ".join(str(change) for change in changes) or "its action record is missing"

    def changes(self, node: StageNode, decision: Decision) -> list[Change] | None:
        """Return the differences from the last run, or None if there was none."""
        last = self.last.read().get(node.id)
        record = self._store.records.get(last) if last else None
        if record is None:
            return None
        return differences(record.preimage, decision.preimage, node.inputs)

    def explain(self, stage: str) -> Explanation:
        """Return why a stage would be a hit or a miss.

        Where a stage that it needs is not up to date, that one is named, with its reason.
        """
        *_, last = self.explanations([stage])
        return last

    def explanations(self, targets: Sequence[str] | None = None) -> Iterator[Explanation]:
        """Yield that of each stage which these targets (all, if None) need, in the order of execution."""
        made: dict[str, Outputs] = {}
        causes: dict[str, dict[str, str]] = {}
        for node, decision, waiting in self.decisions(targets):
            if decision is None:
                roots = causes[node.id] = _merged(causes[need] for need in waiting)
                shown = [f"{root}: {why}" for root, why in islice(roots.items(), MOST_CAUSES)]
                reason = f"for {'; '.join(shown)}{'; and others' if len(roots) > MOST_CAUSES else ''}"
                changes = self._known_changes(node, made)
                yield Explanation(node.id, "waits", reason, changes, causes=tuple(roots))
                continue
            if decision.state == "hit" and decision.record is not None:
                made[node.id] = decision.record.outputs
            else:
                causes[node.id] = {node.id: self.why(node, decision)}
            yield self._explanation(node, decision)

    def _explanation(self, node: StageNode, decision: Decision) -> Explanation:
        if decision.state == "hit":
            reason = f"nothing changed; action key {decision.key}"
            return Explanation(node.id, "hit", reason, (), decision)
        changes = self.changes(node, decision)
        reason = decision.reason or ("not built before" if changes is None else "changed since the last run")
        return Explanation(node.id, decision.state, reason, tuple(changes or ()), decision)

    def _known_changes(self, node: StageNode, made: Mapping[str, Outputs]) -> tuple[Change, ...]:
        """Return what changed about a stage itself while some of its inputs aren't known."""
        last = self.last.read().get(node.id)
        record = self._store.records.get(last) if last else None
        if record is None:
            return ()
        inputs = {}
        for name, source in node.inputs.items():
            if isinstance(source, PathSource) or source.stage in made:
                inputs[name] = self._input(node, name, made)
        suffixes = {name: suffix_of(node, name, self.graph.stages) for name in inputs}
        image = preimage(node, inputs, suffixes, self.environment)
        changes = differences(record.preimage, image, node.inputs)
        gone = {f"inputs.{name}" for name in node.inputs if name not in inputs}
        return tuple(change for change in changes if change.component not in gone)
