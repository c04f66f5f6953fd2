"""What a stage asks for under `resources:`, and what a machine that lacks it says."""

from __future__ import annotations

import pytest

from tests.conftest import Project

COMMAND = "echo ${CUDA_VISIBLE_DEVICES-none} > $OUTPUT_O"
SHOW = f"{{uses: run.command, outputs: {{o: o}}, with: {{command: '{COMMAND}'}}"


def test_each_stage_gets_gpus_of_its_own_and_sees_no_others(project: Project) -> None:
    asked = {"one": 1, "another": 1, "both": 2, "plain": 0}
    project.pipeline("\n".join(
        f"{id_}: {{uses: run.command, outputs: {{o: o}}, with: {{command: '{COMMAND}; : {id_}'}}, "
        f"resources: {{gpu: {count}}}}}" for id_, count in asked.items()))  # fmt: skip
    project.run("--cpu", "8", CUDA_VISIBLE_DEVICES="4,GPU-7")
    assert sorted([project.output("one"), project.output("another")]) == [b"4\n", b"GPU-7\n"]
    assert project.output("both") == b"4,GPU-7\n"
    assert project.output("plain") == b"none\n"


@pytest.mark.parametrize(
    ("resources", "visible", "said"),
    [
        ("gpu: 2", "0", "it needs 2 GPUs, and this machine has 1 in CUDA_VISIBLE_DEVICES"),
        ("gpu: 1", "", "it needs 1 GPU, and this machine has none in CUDA_VISIBLE_DEVICES"),
        ("custom: {a100: 1}", "0", "it needs the resource 'a100', which a local run doesn't know"),
    ],
)
def test_what_this_machine_lacks_fails_with_a_sentence(
    project: Project, resources: str, visible: str, said: str
) -> None:
    project.pipeline(f"a: {SHOW}, resources: {{{resources}}}}}\nb: {SHOW}}}")
    result = project.run(exits=1, CUDA_VISIBLE_DEVICES=visible)
    assert result["stages"]["a"]["error"] == f"{said} (run with `--executor ray` on a cluster that has it)"
    assert result["stages"]["b"]["state"] == "ran"


def test_resources_and_the_executor_are_in_no_key(project: Project) -> None:
    project.pipeline(f"a: {SHOW}, resources: {{gpu: 1}}}}")
    project.run(CUDA_VISIBLE_DEVICES="0")
    project.pipeline(
        f"a: {SHOW}, resources: {{gpu: 2, custom: {{a100: 1}}}}}}", head="executor: {name: ray}\n"
    )
    assert project.run()["hit"] == 1
    assert project.run()["hit"] == 1  # Out of the compiled form.


def test_an_address_without_a_cluster_is_refused(project: Project) -> None:
    project.pipeline(f"a: {SHOW}}}")
    done = project.cli("run", "--ray-address", "ray://head:10001", exits=2)
    assert done.stderr == "error: the executor local has no address (add --executor ray)\n"
    done = project.cli("run", "--executor", "kubernetes", exits=2)
    assert "argument --executor: 'kubernetes' is none of local, ray" in done.stderr
