"""A pipeline to disturb, and what its store may hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from deploy_runner.store.cas import Store
from deploy_runner.store.verify import verify
from tests.conftest import Project

__all__ = ["assert_sound", "orphans", "prepare"]

STAGES = """
a: {uses: text.upper, inputs: {text: in.txt}}
b: {uses: run.command, inputs: {x: "${{ stages.a.outputs.text }}"}, outputs: {o: o, d: d/},
    with: {command: "seq 20000 > $OUTPUT_O; mkdir $OUTPUT_D; cat $INPUT_X > $OUTPUT_D/x; seq 9 > $OUTPUT_D/y"}}
c: {uses: text.join, inputs: {texts: {b: "${{ stages.b.outputs.o }}", a: "${{ stages.a.outputs.text }}"}}}
d: {uses: text.upper, inputs: {text: "${{ stages.c.outputs.text }}"}}
"""
"""Commands and Python stages, files and a folder."""


def prepare(project: Project) -> dict[str, object]:
    """Write the pipeline, run it once, return its outputs, and forget everything."""
    project.pipeline(STAGES)
    expected = {k: v["outputs"] for k, v in project.run()["stages"].items()}
    subprocess.run(["rm", "-rf", str(project.folder / ".deploy-runner")], check=True)
    return expected


KEPT = re.compile(
    r"cas/sha256/[0-9a-f]{2}/[0-9a-f]{62}|actions/[0-9a-f]{2}/[0-9a-f]{62}\.json|locks/[0-9a-f]{64}"
    r"|runs/[^/]+/((record|outline)\.json|report\.html|log\.jsonl|logs/\w+\.log)|(last|compiled)/[0-9a-f]{32}\.json"
    r"|secret|gc\.lock|counter(\.lock)?|stat\.sqlite(-wal|-shm|-journal)?"
)
"""Every file that a store keeps; anything else is an orphan."""


def orphans(home: Path) -> list[str]:
    """Return the files of a store that nothing would ever use or remove."""
    names = (p.relative_to(home).as_posix() for p in home.rglob("*") if not p.is_dir())
    return [name for name in names if not KEPT.fullmatch(name)]


def assert_sound(home: Path) -> None:
    """Check every object of a store, if there is one."""
    if home.exists():
        report = verify(Store(home))
        assert report.ok, report
