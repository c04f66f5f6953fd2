"""Nothing of a stage outlives it, and what a record says was read is what was read."""

from __future__ import annotations

import json

from tests.conftest import Project
from tests.waiting import wait_until


def test_an_input_that_is_altered_after_it_was_hashed_is_not_read(project: Project) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}}
        slow: {uses: run.command, outputs: {o: o}, needs: [a], with: {command: "echo on; sleep 2; touch $OUTPUT_O"}}
        c: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}, needs: [slow]}
        """
    )
    process = project.start("run", "--json")
    logs = project.folder / ".deploy-runner/runs"
    wait_until(lambda: any("on" in log.read_text() for log in logs.glob("*/logs/slow.log")))
    (made,) = project.objects()
    made.chmod(0o644)
    made.write_bytes(b"OTHER")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    stages = json.loads(out.splitlines()[-1])["stages"]
    assert {id_: stage["state"] for id_, stage in stages.items()} == {
        "a": "healed",
        "slow": "ran",
        "c": "ran",
    }
    assert project.output("c") == b"HELLO"
