"""Stages on a Ray cluster make what they make here, and what they read gets there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import DIGITS, Project
from tests.ray.conftest import RayProject


def outputs(result: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    return {id_: stage["outputs"] for id_, stage in result["stages"].items()}


def test_a_chain_on_the_nodes_makes_what_a_local_run_makes(project: RayProject, tmp_path: Path) -> None:
    project.write("lib/words.py", "def word(): return 'from the user'\n")
    project.write(
        "lib/code.py",
        """
        from pathlib import Path
        from lib.words import word

        def run(ctx, inputs, outputs):
            (outputs["o"]).write_text(word() + str(sorted(p.name for p in Path(inputs["d"]).iterdir())))
        """,
    )
    for name in ("x.txt", "y.txt"):
        project.write(f"data/{name}", name)
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
        b: {uses: run.command, inputs: {x: "${{ stages.a.outputs.text }}"}, outputs: {o: o, d: d/},
            with: {command: "mkdir $OUTPUT_D; cp $INPUT_X $OUTPUT_D/x; wc -c < $INPUT_X > $OUTPUT_O; chmod +x $OUTPUT_O; mkdir $OUTPUT_D/none"}}
        c: {uses: text.join, inputs: {texts: {a: "${{ stages.a.outputs.text }}", b: "${{ stages.b.outputs.o }}"}}}
        d: {uses: run.python, inputs: {d: data}, outputs: {o: o}, with: {function: "lib/code.py:run"}}
        """
    )
    there = project.run(*project.ray)
    assert there["ran"] == 4
    assert outputs(project.alike(tmp_path).run()) == outputs(there)
    assert project.run()["hit"] == 4
    assert project.output("c.text") == b"a=HELLO!\nb=6\n"
    assert project.output("d") == b"from the user['x.txt', 'y.txt']"


@pytest.mark.slow
def test_torchscript_of_the_users_model_has_the_same_digest(project: RayProject, tmp_path: Path) -> None:
    for name in ("model.py", "digits.pt"):
        shutil.copy(DIGITS / name, project.folder / name)
    project.pipeline(
        """
        weights: {uses: checkpoint.state_dict, inputs: {checkpoint: digits.pt}}
        model: {uses: model.prepare, inputs: {weights: "${{ stages.weights.outputs.weights }}"},
                with: {factory: "model.py:build", example: {shape: [1, 1, 8, 8]}}}
        script: {uses: torch.script, inputs: {model: "${{ stages.model.outputs.model }}"}}
        """
    )
    assert outputs(project.run(*project.ray)) == outputs(project.alike(tmp_path).run())


@pytest.mark.slow
def test_a_run_through_rays_client_and_then_a_run_of_hits_without_a_cluster(project: RayProject) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    address = project.cluster.client_address
    assert project.states("--executor", "ray", "--ray-address", address) == {"a": "ran"}
    nobody = ("--executor", "ray", "--ray-address", "ray://192.0.2.1:1")
    assert project.states(*nobody) == {"a": "hit"}


@pytest.mark.slow
def test_without_an_address_ray_runs_on_this_machine_with_this_store(project: RayProject) -> None:
    Project.pipeline(project, "a: {uses: text.upper, inputs: {text: in.txt}}")
    assert project.states("--executor", "ray") == {"a": "ran"}
    assert project.output("a") == b"HELLO"
    assert project.states() == {"a": "hit"}


@pytest.mark.slow
def test_gpus_and_custom_resources_decide_on_which_node_a_stage_runs(project: RayProject) -> None:
    command = "echo $CUDA_VISIBLE_DEVICES > $OUTPUT_O"
    project.pipeline(
        f"""
        g: {{uses: run.command, outputs: {{o: o}}, with: {{command: "{command}"}}, resources: {{gpu: 2}}}}
        r: {{uses: run.command, outputs: {{o: o}}, with: {{command: "echo r > $OUTPUT_O"}}, resources: {{custom: {{one: 1}}}}}}
        none: {{uses: text.upper, inputs: {{text: in.txt}}, resources: {{custom: {{a100: 1}}}}}}
        many: {{uses: text.upper, inputs: {{text: in.txt}}, resources: {{gpu: 9}}}}
        """
    )
    result = project.run(*project.ray, exits=1)["stages"]
    fix = "(add such a node, or set executor.autoscaling if the cluster adds nodes itself)"
    assert result["none"]["error"] == (
        "it needs 1 of the resource 'a100', and the largest node has none of the resource 'a100' " + fix
    )
    assert result["many"]["error"] == f"it needs 9 GPUs, and the largest node has 2 GPUs {fix}"
    assert sorted(project.output("g").strip().split(b",")) == [b"0", b"1"]
    digest = result["r"]["outputs"]["o"]
    place = f"cas/sha256/{digest[:2]}/{digest[2:]}"
    assert (project.cluster.home("one") / place).exists()
    assert not (project.cluster.home("two") / place).exists()


@pytest.mark.slow
def test_a_stage_with_a_secret_runs_at_the_driver(project: RayProject) -> None:
    project.pipeline(
        """
        s: {uses: text.odd, with: {how: log, secret: "${{ secrets.WORD }}"}}
        a: {uses: text.upper, inputs: {text: "${{ stages.s.outputs.text }}"}}
        """
    )
    result = project.run(*project.ray, WORD="a-word-that-nobody-may-read")["stages"]
    assert {result["s"]["state"], result["a"]["state"]} == {"ran"}
    homes = [path for path in (project.cluster.folder / "homes").rglob("*") if path.is_file()]
    assert not [path for path in homes if b"a-word-that-nobody-may-read" in path.read_bytes()]
    assert project.output("a") == b"ODD"
