"""A stage may have children, threads and shared memory of its own, whatever confines it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.security.hostile import NO_NAMESPACES, USER, Attacked, Kernel, attacked

KERNELS = {
    "root": Kernel(0),
    "a user": Kernel(USER),
    "root without namespaces": Kernel(0, NO_NAMESPACES),
    "a user without namespaces": Kernel(USER, NO_NAMESPACES),
}

STAGES = '''
import os, subprocess, sys, threading
import numpy as np
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams

class Family(Stage):
    """Have processes, threads and shared memory."""
    uses = "text.family"
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        import asyncio, multiprocessing, multiprocessing.shared_memory
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        said = subprocess.run(["sh", "-c", "echo a | cat; id -u"], capture_output=True, text=True, check=True).stdout
        ctx.figure("shell", said.split()[0])
        ctx.figure("python", subprocess.run([sys.executable, "-c", "print(2 + 2)"], capture_output=True, text=True, check=True).stdout.strip())
        with multiprocessing.get_context("fork").Pool(2) as pool:
            ctx.figure("pool", sum(pool.map(abs, range(-9, 1))))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            ctx.figure("spawned", sum(pool.map(abs, range(-9, 1))))
        with ProcessPoolExecutor(2) as pool:
            ctx.figure("futures", sum(pool.map(abs, range(-9, 1))))
        with ThreadPoolExecutor(100) as pool:
            ctx.figure("threads", sum(pool.map(abs, range(-99, 1))))
        memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20)
        memory.close(); memory.unlink()
        async def shell():
            child = await asyncio.create_subprocess_exec("echo", "b", stdout=subprocess.PIPE)
            return (await child.communicate())[0].decode().strip()
        ctx.figure("asyncio", asyncio.run(shell()))
        outputs.text.write_text("x")

class Loader(Stage):
    """Load data by a DataLoader's workers, and compute by onnxruntime's threads."""
    uses = "text.loader"
    preload = ("torch", "onnxruntime")
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        import onnx, onnxruntime, torch
        from onnx import helper, TensorProto as T
        data = torch.utils.data.TensorDataset(torch.arange(1000.0).reshape(100, 10))
        total = sum(float(x.sum()) for (x,) in torch.utils.data.DataLoader(data, batch_size=10, num_workers=2, timeout=60))
        ctx.figure("loaded", total)
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "g",
            [helper.make_tensor_value_info("a", T.FLOAT, [256, 256])], [helper.make_tensor_value_info("b", T.FLOAT, [256, 256])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        ctx.figure("computed", float(session.run(None, {"a": np.ones((256, 256), np.float32)})[0][0, 0]))
        ctx.figure("summed", float((torch.ones(300, 300) @ torch.ones(300, 300))[0, 0]))
        outputs.text.write_text("x")
'''


@pytest.fixture
def target(kernel: Kernel) -> Iterator[Attacked]:
    """A project whose stages have families."""
    with attacked(kernel) as made:
        made.project.write("stages/family.py", STAGES)
        yield made


def test_stages_have_children_threads_and_shared_memory(target: Attacked) -> None:
    target.pipeline("family: {uses: text.family}\nloader: {uses: text.loader, timeout: 120s}")
    record = target.run()
    assert record["failed"] == 0, record
    assert record["stages"]["family"]["figures"] == {
        "shell": "a", "python": "4", "pool": 45, "spawned": 45, "futures": 45, "threads": 4950, "asyncio": "b",
    }  # fmt: skip
    assert record["stages"]["loader"]["figures"] == {"loaded": 499500, "computed": 256, "summed": 300}


def test_a_stage_starts_its_interpreter_whatever_links_lead_to_it(tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "python3").symlink_to(os.path.realpath(sys.executable))
    venv = tmp_path / "venv"
    subprocess.run([links / "python3", "-m", "venv", "--without-pip", venv], check=True)
    installed = sysconfig.get_path("purelib")
    for folder in venv.glob("lib/python*/site-packages"):
        (folder / "ours.pth").write_text(f"import site; site.addsitedir({installed!r})\n")
    project = Project(tmp_path / "project")
    python = f"{venv}/bin/../bin/python"
    project.pipeline(
        f"a: {{uses: run.command, outputs: {{o: o}}, with: {{command: '{python} -c \"import encodings\" > $OUTPUT_O'}}}}"
    )
    for verb in ("run", "doctor"):
        done = subprocess.run(
            [python, "-m", "deploy_runner", verb], cwd=project.folder, env=project.env, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    (confined,) = (line for line in done.stdout.splitlines() if "sandbox" in line)
    assert confined in project.cli("doctor").stdout


def test_a_project_is_reached_by_a_link(project: Project, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(project.folder.parent)
    place = link / project.folder.name
    project.write("data/extra.csv", "1,2")
    project.pipeline(f"""
        a: {{uses: text.upper, inputs: {{text: in.txt}}}}
        b: {{uses: run.command, inputs: {{t: in.txt}}, outputs: {{o: o}}, with: {{command: 'cp "$INPUT_T" here; mv here "$OUTPUT_O"'}}}}
        c: {{uses: text.odd, with: {{how: read, path: {place}/data/extra.csv}}}}
        """)
    done = project.cli("run", str(place / "pipeline.yaml"), "--json", exits=1)
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert [row["state"] for row in stages.values()] == ["ran", "ran", "failed"]
    assert "it read data/extra.csv (" in stages["c"]["error"]
    assert "), which is not declared" in stages["c"]["error"]
