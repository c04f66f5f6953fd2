"""On which device a model runs: what can't have the one that was asked for is refused, and never runs elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_runner.engine.keys import KeyEnvironment
from deploy_runner.errors import StageError
from deploy_runner.stages.package import image
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import Project
from tests.installed import installed
from tests.serve import models
from tests.serve.models import Digits
from tests.serve.packed import loaded_code, write_code
from tests.serve.server import refusal


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "onnxruntime"), ("torchscript", "torch")])
def test_a_runtime_for_the_cpu_alone_is_refused(
    digits: Digits, tmp_path: Path, kind: str, runtime: str
) -> None:
    given = {"candidate": getattr(digits, kind), "reference": digits.bundle}
    with pytest.raises(StageError, match=rf"^{runtime} \S+ is built for the CPU alone \("):
        run_stage(stage("verify.parity"), tmp_path / "p", inputs=given, params={"device": "cuda"})
    said = refusal(getattr(digits, kind), "--reference", digits.bundle, "--trust", "--device", "cuda")
    assert f"{runtime} 2" in said or f"{runtime} 1" in said
    assert "is built for the CPU alone" in said


@pytest.mark.slow
def test_a_silent_fall_back_to_the_cpu_is_refused(digits: Digits, tmp_path: Path, project: Project) -> None:
    """The real onnxruntime-gpu (256 MB) takes the CPU where it finds no CUDA, and only warns."""
    libs = tmp_path / "libs"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            libs,
            "onnxruntime-gpu==1.31.1",
        ],
        check=True,
    )
    fell_back = "onnxruntime can't use a GPU here, and took the CPU: Failed to load libcu"
    done = project.cli("serve", str(digits.onnx), "--device", "cuda", exits=2, PYTHONPATH=str(libs))
    assert fell_back in done.stderr
    assert done.stdout == ""
    shutil.copytree(digits.onnx, project.folder / "onnx")
    project.pipeline("package: {uses: package.sagemaker, inputs: {model: onnx/}, with: {device: cuda}}")
    found = project.run(exits=1, PYTHONPATH=str(libs), CUDA_VISIBLE_DEVICES="0")["stages"]["package"]
    assert f"code/inference.py fails when it calls model_fn: UnfitArtifact: {fell_back}" in found["error"]


def test_a_stage_on_a_gpu_asks_for_one(digits: Digits, project: Project) -> None:
    shutil.copytree(digits.onnx, project.folder / "onnx")
    shutil.copytree(digits.bundle, project.folder / "bundle")
    project.pipeline(
        """
        parity: {uses: verify.parity, inputs: {candidate: onnx/, reference: bundle/}, with: {device: cuda}}
        """
    )
    found = project.run(exits=1, CUDA_VISIBLE_DEVICES="")["stages"]["parity"]
    assert "1 GPU, and this machine has none in CUDA_VISIBLE_DEVICES" in found["error"]


def test_a_container_for_a_gpu_is_tried_on_one(digits: Digits, tmp_path: Path) -> None:
    given = {"model": digits.onnx, "reference": digits.bundle}
    with pytest.raises(StageError, match=r"^onnxruntime \S+ is built for the CPU alone \("):
        run_stage(stage("package.container"), tmp_path / "c", inputs=given, params={"device": "cuda"})


def test_a_package_for_a_gpu_is_tried_on_one(digits: Digits, tmp_path: Path) -> None:
    def pack(kind: str, **params: object) -> None:
        given = {"model": getattr(digits, kind), "reference": digits.bundle}
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        run_stage(stage("package.sagemaker"), place, inputs=given, params={"device": "cuda", **params})

    with pytest.raises(
        StageError, match=r"^onnxruntime-gpu\[cuda,cudnn\] is not installed, and the container"
    ):
        pack("onnx")
    with pytest.raises(StageError, match=r"^onnxruntime \S+ is built for the CPU alone \("):
        pack("onnx", requirements=["numpy"])
    with pytest.raises(StageError, match=r"^torch \S+ is built for the CPU alone \("):
        pack("torchscript")


def test_a_packages_own_code_never_takes_another_device_than_its_own(tmp_path: Path) -> None:
    model = models.two_outputs(tmp_path / "model")
    ports = [{"name": "x", "dtype": "float32", "shape": [1, 2], "batch": 0}]
    described = {"format": "onnx", "file": "model.onnx", "inputs": ports, "outputs": [], "device": "cuda"}
    (model / "model.json").write_text(json.dumps(described))
    write_code(model)
    with pytest.raises(Exception, match=r"^onnxruntime \S+ is built for the CPU alone \("):
        loaded_code(model)


def test_the_image_for_a_gpu_names_its_runtime_and_how_to_start_it() -> None:
    given = {"format": "onnx", "inputs": []}
    assert image.environment("fastapi", "onnx", "m", [], device="cuda")["SERVE_DEVICE"] == "cuda"
    assert "docker run --rm --gpus all -p 8080" in image.readme(
        "m", "0", given, device="cuda", port="8080", user=1
    )
    assert image.roots("fastapi", "onnx", "cuda")[-1] == "onnxruntime-gpu[cuda,cudnn]"
    with pytest.raises(StageError, match="onnxruntime-gpu is not installed, and the image gets the versions"):
        image.requirements(image.roots("fastapi", "onnx", "cuda"))


def test_an_unknown_device_is_refused_by_name(digits: Digits, project: Project) -> None:
    done = project.cli("serve", str(digits.onnx), exits=2, SERVE_DEVICE="tpu")
    assert "device 'tpu' is neither cpu nor cuda" in done.stderr


def test_what_is_installed_in_place_of_a_runtime_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "quick_gpu", "1.31.1", "")
    (tmp_path / "quick.py").write_text("")
    (tmp_path / "quick_gpu-1.31.1.dist-info/RECORD").write_text("quick.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = KeyEnvironment(str)
    assert environment.version("quick") == "quick_gpu 1.31.1"
    assert environment.version("quick-gpu") == "1.31.1"
    assert environment.version("quicker") == "absent"


def test_doctor_says_where_two_runtimes_share_a_folder(project: Project, tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    installed(libs, "onnxruntime", "1.32.0", "")
    installed(libs, "onnxruntime_gpu", "1.31.1", "")
    project.pipeline("a: {uses: run.command, with: {command: 'true'}}")
    found = project.cli("doctor", exits=1, PYTHONPATH=str(libs)).stdout
    assert "onnxruntime and onnxruntime-gpu are both installed, and share one folder" in found
