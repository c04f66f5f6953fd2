"""What travels to a node: the files that are in the key, and what is compared there."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from deploy_runner.engine.execute.action import Action, Project
from deploy_runner.engine.execute.parcels import (
    Address,
    Parcel,
    differences,
    lay_out,
    opened,
    pack,
    sealed,
    travelling,
)
from deploy_runner.engine.execute.ray_cluster import _refusal
from deploy_runner.engine.execute.redact import Redactor
from deploy_runner.engine.keys import KeyEnvironment
from deploy_runner.engine.plan import Planner
from deploy_runner.errors import StageError
from deploy_runner.store.cas import Store
from deploy_runner.types import RefSource
from tests.conftest import Project as Folder
from tests.unit.compiling import compile_

AWAY = Address("", "", None, sends=True)


def parcel_of(project: Folder, id_: str, address: Address = AWAY) -> tuple[Parcel, Store]:
    graph = compile_(project)
    store = Store(project.folder.parent / "store")
    planner = Planner(graph, store, ())
    node = graph.stages[id_]
    decision = planner.decide(node, {})
    action = Action(node, decision, Path("/nowhere/0001"), Redactor({}))
    files = list(travelling(node, decision.inputs, graph.root, store.memo.digest))
    parcel = pack(
        action, Project(graph.root, False, "run"), files, planner.environment, address, {True: [], False: []},
        require_sandbox=False, keep_workdir=False,
    )  # fmt: skip
    return parcel, store


@pytest.fixture
def parcel(project: Folder) -> Parcel:
    """A stage of the project's own type."""
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    return parcel_of(project, "a")[0]


def test_the_projects_own_type_travels_and_its_input_only_by_digest(project: Folder, parcel: Parcel) -> None:
    assert [file.place for file in parcel.files] == ["project/stages/texts.py"]
    assert parcel.expected["sources"] == {}
    assert b"hello" not in sealed(parcel)
    assert parcel.decision.preimage == {}


def test_on_the_node_the_same_relative_paths_lie_below_another_folder(
    project: Folder, tmp_path: Path
) -> None:
    project.write("lib/code.py", "def run(ctx, inputs, outputs): pass\n")
    project.pipeline(
        "a: {uses: run.python, inputs: {t: in.txt}, outputs: {o: o}, with: {function: 'lib/code.py:run'}}"
    )
    parcel, store = parcel_of(project, "a")
    for file in parcel.files:
        copy = tmp_path / "copy"
        copy.write_bytes(Path(file.source).read_bytes())
        store.ingest(copy)
    node, there = lay_out(parcel, store, tmp_path / "node")
    assert there.root == str(tmp_path / "node/project")
    assert [(f.name, f.path) for f in node.code] == [("lib/code.py", f"{there.root}/lib/code.py")]
    assert Path(node.code[0].path).read_text().startswith("def run")
    assert isinstance(node.inputs["t"], RefSource)
    assert node.stage_dir.endswith("/stages")


def test_on_the_drivers_own_machine_nothing_is_laid_out(project: Folder, tmp_path: Path) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    parcel, store = parcel_of(project, "a", Address(str(tmp_path), "", None, sends=False))
    assert parcel.files == ()
    node, there = lay_out(parcel, store, tmp_path / "node")
    assert (node, there) == (parcel.node, parcel.project)
    assert not (tmp_path / "node").exists()


def test_each_difference_of_a_node_is_named(project: Folder) -> None:
    project.pipeline("a: {uses: run.command, outputs: {o: o}, with: {command: 'true'}}")
    parcel, store = parcel_of(project, "a")
    keys = KeyEnvironment(store.memo.digest)
    assert differences(parcel, keys) == []
    assert "stages/run/command.py" in str(parcel.expected["sources"])
    sources = {"stages/run/command.py": "1" * 64, "stages/run/nonesuch.py": "0" * 64}
    packages = {"pytest": "0.1", "nonesuch": "3"}
    expected = {"packages": packages, "facets": {"arch": "vax"}, "sources": sources}
    other = parcel._replace(expected=expected)  # type: ignore[arg-type]
    assert differences(other, keys) == [
        f"pytest {pytest.__version__} where the key has 0.1",
        "no nonesuch where the key has 3",
        f"the platform arch {keys.facet('arch')} where the key has vax",
        "another stages/run/command.py and 1 more of the stage type run.command",
    ]


def test_a_parcel_of_another_version_is_refused_unread(parcel: Parcel) -> None:
    assert opened(sealed(parcel), "n") == parcel
    foreign = b"9.9.9\n" + pickle.dumps(parcel)[:50]
    with pytest.raises(
        StageError, match=r"the node n has deploy-runner .*, the driver 9\.9\.9 \(install the same"
    ):
        opened(foreign, "n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n"
         "This process on node 1 was started with:\n    Ray: 2.61.0\n    Python: 3.11.7\n",
         "the Ray cluster at h:1 has Ray 2.60.0 and Python 3.12.1, this machine Ray 2.61.0 and Python 3.11.7"),
        ("Unauthenticated: InvalidAuthToken", "the Ray cluster at h:1 wants a token"),
        ("Ray Client requires pip package `ray[client]`.", "the Ray cluster at h:1 needs Ray's client"),
        ("one\ntwo\n", "the Ray cluster at h:1 can't be used: two"),
    ],
)  # fmt: skip
def test_why_ray_does_not_connect_is_one_sentence(text: str, said: str) -> None:
    assert _refusal("h:1", text)[0] == said
