"""What the owner may execute stays executable, and an empty folder stays one, wherever they go."""

from __future__ import annotations

import json
from pathlib import Path

from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.inventory import named_by
from deploy_runner.store.remote import Remote
from deploy_runner.types import Artifact, RemoteSpec
from tests.conftest import Project
from tests.machines import Machines, Share

STAGES = """
a: {uses: run.command, inputs: {tool: tool.sh, tree: tree}, outputs: {tool: tool.sh, text: o.txt, made: made/},
    with: {command: "$INPUT_TOOL > $OUTPUT_TEXT; $INPUT_TREE/bin/run >> $OUTPUT_TEXT; test -d $INPUT_TREE/logs/old;
      cp $INPUT_TOOL $OUTPUT_TOOL; chmod 6755 $OUTPUT_TOOL; cp -r $INPUT_TREE $OUTPUT_MADE; mkdir $OUTPUT_MADE/new"}}
b: {uses: run.command, inputs: {tool: "${{ stages.a.outputs.tool }}", made: "${{ stages.a.outputs.made }}"},
    outputs: {text: o.txt}, with: {command: "$INPUT_TOOL > $OUTPUT_TEXT; test -d $INPUT_MADE/logs/old"}}
"""
SCRIPT = "#!/bin/sh\necho it runs\n"


def shape(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mode & 0o7777 for p in sorted(folder.rglob("*"))}


def with_tools(project: Project) -> Project:
    for name in ("tool.sh", "tree/bin/run"):
        project.write(name, SCRIPT).chmod(0o4755)
    (project.folder / "tree/logs/old").mkdir(parents=True)
    return project


def test_modes_and_empty_folders_go_through_stages_the_shared_cache_and_get(tmp_path: Path) -> None:
    machines = Machines(tmp_path, Share(tmp_path / "share"))
    first = with_tools(machines.machine("first", STAGES))
    stages = first.run()["stages"]
    assert {k: v["state"] for k, v in stages.items()} == {"a": "ran", "b": "ran"}
    made, tool = (stages["a"]["outputs"][name] for name in ("made", "tool"))
    record = ActionRecord("k", "run.command", {"made": Artifact(made, "folder", len(SCRIPT))}, {}, {})
    assert named_by(Remote(RemoteSpec(machines.remote.url), {}), [record]) == {"k": {made, tool}}

    second = with_tools(machines.machine("second", STAGES, push=False))
    for path in ("tool.sh", "tree/bin/run"):
        (second.folder / path).chmod(0o700)  # As another umask checks it out.
    assert second.states() == {"a": "hit", "b": "hit"}
    second.cli("get", "a.tool", "--to", "got.sh")
    assert (second.folder / "got.sh").stat().st_mode & 0o7777 == 0o755
    second.cli("get", "a.made", "--to", "got")
    assert shape(second.folder / "got") == {
        "bin": 0o755, "bin/run": 0o755, "logs": 0o755, "logs/old": 0o755, "new": 0o755,
    }  # fmt: skip
    assert second.output("a.text").decode() == "it runs\n" * 2
    assert second.output("b") == b"it runs\n"

    (second.folder / "tool.sh").chmod(0o644)
    plan = json.loads(second.cli("plan", "--json").stdout)
    assert plan["actions"][0]["reason"] == "the input `tool` is not executable any more"
    (second.folder / "tool.sh").chmod(0o755)
    (second.folder / "tree/logs/old").rmdir()
    assert "the input `tree`: tree changed" in second.cli("explain", "a").stdout
