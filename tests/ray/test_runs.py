"""Stages on a Ray cluster make what they make here, and what they read gets there."""

from __future__ import annotations

from pathlib import Path

from tests.ray.conftest import RayProject


def test_a_chain_runs_on_the_nodes_and_makes_what_a_local_run_makes(
    project: RayProject, tmp_path: Path
) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
        b: {uses: run.command, inputs: {x: "${{ stages.a.outputs.text }}"}, outputs: {o: o, d: d/},
            with: {command: "mkdir $OUTPUT_D; cp $INPUT_X $OUTPUT_D/x; wc -c < $INPUT_X > $OUTPUT_O"}}
        c: {uses: text.join, inputs: {texts: {a: "${{ stages.a.outputs.text }}", b: "${{ stages.b.outputs.o }}"}}}
        """
    )
    there = project.run(*project.ray)
    assert there["ran"] == 3
    here = project.alike(tmp_path).run()
    assert {k: v["outputs"] for k, v in here["stages"].items()} == {
        k: v["outputs"] for k, v in there["stages"].items()
    }
    assert project.run(*project.ray)["hit"] == 3
    assert project.output("c") == b"a=HELLO!\nb=6\n"
