"""`torch.aot`: a model as machine code, which is proved, described, served and packed like the others."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.errors import GateError, StageError
from deploy_runner.server import aot
from deploy_runner.server.problems import UnfitArtifact
from deploy_runner.stages.model import npz
from deploy_runner.stages.push.huggingface import card
from deploy_runner.stages.push.huggingface.content import Wanted
from deploy_runner.stages.push.huggingface.facts import Facts
from deploy_runner.testing import run_stage
from tests.bundles import bundle as bundle_of
from tests.bundles import stage
from tests.conftest import HELD, ROOT, Project
from tests.serve.server import ask, client, serving

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(4, 3)
    def forward(self, picture):
        return self.last(self.conv(picture).relu().mean((2, 3)))
"""
EXAMPLE = {
    "example": {"shape": [2, 1, 16, 24]},
    "dynamic": {
        "picture": {
            "0": {"name": "batch", "max": 40},
            "2": {"name": "height", "multiple_of": 8, "min": 8, "max": 64},
        }
    },
}


def prepared(folder: Path) -> Path:
    """Return the bundle of NET, whose batch has a largest size and whose height goes in steps."""
    (folder / "net.py").write_text(NET)
    made: dict[str, Any] = {}
    exec(NET, made)
    torch.manual_seed(0)
    torch.save(made["Net"]().state_dict(), folder / "net.pt")
    taken = run_stage(stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": folder / "net.pt"})
    return run_stage(
        stage("model.prepare"), folder / "b", project=folder, inputs={"weights": taken["weights"]},
        params={"factory": "net.py:Net", **EXAMPLE},
    )["model"]  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def compiled(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = run_stage(stage("torch.aot"), tmp_path_factory.mktemp("aot"), inputs={"model": net})
    return made["model"]


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_a_small_model_is_compiled_compared_and_checks_what_it_is_given(tmp_path: Path) -> None:
    made = run_stage(
        stage("torch.aot"), tmp_path / "aot", inputs={"model": bundle_of(tmp_path, "mlp")["model"]},
        params={"isa": "avx2"} if platform.machine() == "x86_64" else {},
    )  # fmt: skip
    assert made.figures["max_abs"] <= made.figures["allowed"]
    assert made.figures["cases"] == ["batch2", "batch1", "batch5"]
    run = aot.load(made["model"])
    assert run([torch.zeros(7, 64)])[0].shape == (7, 10)
    for wrong in (torch.zeros(2, 64, dtype=torch.float64), torch.zeros(2, 65), torch.zeros(64, 2).T):
        with pytest.raises(RuntimeError, match="unmatched"):
            run([wrong])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(picture(2, 1, 16, 24).double(), "unmatched dtype", id="float64"),
        pytest.param(picture(2, 1, 16, 25), "unmatched dim value at 3", id="another width"),
        pytest.param(picture(2, 1, 72, 24), "too large at 2", id="beyond the largest height"),
        pytest.param(picture(41, 1, 16, 24), "too large at 0", id="beyond the largest batch"),
        pytest.param(
            picture(2, 3, 16, 24).to(memory_format=torch.channels_last)[:, :1],
            "unmatched stride",
            id="strides",
        ),
    ],
)
def test_what_it_was_not_compiled_for_is_refused(compiled: Path, given: torch.Tensor, said: str) -> None:
    run = aot.load(compiled)
    assert run([picture(40, 1, 64, 24)])[0].shape == (40, 3)
    with pytest.raises(RuntimeError, match=said):
        run([given])


@pytest.mark.slow
def test_the_bytes_hang_on_neither_folder_nor_threads(
    compiled: Path, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from pathlib import Path; from deploy_runner.testing import run_stage\n"
        "from tests.bundles import stage\n"
        "run_stage(stage('torch.aot'), Path(sys.argv[1]), inputs={'model': Path(sys.argv[2])})"
    )
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    place = tmp_path / "another folder"
    subprocess.run([sys.executable, "-c", code, place, net], check=True, env=env, capture_output=True)
    made = (place / "outputs/model.pt2").read_bytes()
    assert made == compiled.read_bytes()
    assert str(ROOT).encode() not in made
    with zipfile.ZipFile(compiled) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".cpp")]


@pytest.mark.slow
def test_it_says_what_it_takes_and_serve_needs_no_reference(compiled: Path, tmp_path: Path) -> None:
    said = aot.described(compiled)
    assert [(port["name"], port["dynamic"]) for port in said["inputs"]] == [
        ("picture", {"0": "batch", "2": "height"})
    ]
    assert {"label": "height", "multiple_of": 8, "min": 8, "max": 64} in said["axes"]
    with serving(compiled, "--trust", folder=tmp_path) as server, client(server.url) as connection:
        model = ask(connection, "GET", "/v2/models/model").json
        assert model["platform"] == "pytorch_aotinductor"
        assert (
            ask(connection, "POST", "/predict", {"inputs": {"picture": picture(3, 1, 8, 24).tolist()}}).status
            == 200
        )
        for shape, what in (
            ((2, 1, 12, 24), "height (multiples of 8, 8 to 64)"),
            ((41, 1, 16, 24), "batch (1 to 40)"),
            ((2, 1, 16, 25), "24"),
        ):
            answer = ask(connection, "POST", "/predict", {"inputs": {"picture": np.zeros(shape).tolist()}})
            assert answer.status == 422
            assert what in answer.body.decode()


@pytest.mark.slow
def test_many_requests_at_once_never_exceed_the_largest_batch(compiled: Path, tmp_path: Path) -> None:
    with serving(compiled, "--trust", "--max-batch", "64", folder=tmp_path) as server:
        one = {"inputs": {"picture": picture(30, 1, 16, 24).tolist()}}
        with client(server.url) as connection:
            assert [ask(connection, "POST", "/predict", one).status for _ in range(5)] == [200] * 5
        assert server.figures()["serve_batch_samples_sum"] == 150


@pytest.fixture(scope="module")
def digits_aot(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stage(stage("torch.aot"), tmp_path_factory.mktemp("digits"), inputs={"model": bundle})["model"]


@pytest.mark.slow
def test_it_is_judged_and_chosen_among_onnx_models(
    digits_aot: Path, fp32: Path, bundle: Path, tmp_path: Path
) -> None:
    judged = {"candidate": digits_aot, "reference": bundle}
    parity = run_stage(stage("verify.parity"), tmp_path / "p", inputs=judged)
    assert 0 < parity.figures["max_abs"] < 1e-4
    candidates = {"aot": digits_aot, "onnx": fp32}
    reports = {
        name: run_stage(
            stage("verify.accuracy"), tmp_path / name, params={"max_drop": 0.2},
            inputs={"candidate": path, "reference": bundle, "data": HELD},
        )["report"]
        for name, path in candidates.items()
    }  # fmt: skip
    chosen = run_stage(
        stage("select"), tmp_path / "s", params={"objective": "size", "rounds": 5},
        inputs={"candidates": candidates, "accuracy": reports, "reference": bundle},
    )  # fmt: skip
    assert set(chosen.figures["candidates"]) == {"aot", "onnx"}
    only = run_stage(
        stage("select"), tmp_path / "o", params={"rounds": 5},
        inputs={"candidates": {"aot": digits_aot}, "accuracy": reports, "reference": bundle},
    )["model"]  # fmt: skip
    assert (only / "model.pt2").read_bytes() == digits_aot.read_bytes()
    packed = run_stage(
        stage("package.container"), tmp_path / "c", inputs={"model": only, "reference": bundle}
    )
    assert packed.figures["max_abs"] <= packed.figures["allowed"]


@pytest.mark.slow
def test_a_container_serves_it_and_says_what_it_needs(digits_aot: Path, bundle: Path, tmp_path: Path) -> None:
    context = run_stage(
        stage("package.container"), tmp_path / "c", inputs={"model": digits_aot, "reference": bundle}
    )["context"]
    assert json.loads((context / "model/model.json").read_text())["format"] == "aot"
    assert f"torch=={torch.__version__.partition('+')[0]}" in (context / "requirements.txt").read_text()
    assert '"--trust"' in (context / "Dockerfile").read_text()
    assert "machine code for one kind of processor" in (context / "README.md").read_text()
    with serving(context, "--trust", folder=tmp_path / "s") as server, client(server.url) as connection:
        zeros = np.zeros((1, 1, 8, 8)).tolist()
        assert ask(connection, "POST", "/invocations", {"inputs": {"image": zeros}}).status == 200


@pytest.mark.slow
def test_sagemaker_s_own_containers_are_refused_with_the_way_out(
    digits_aot: Path, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"SageMaker's own containers .*") as error:
        run_stage(stage("package.sagemaker"), tmp_path, inputs={"model": digits_aot, "reference": bundle})
    assert "package.container" in error.value.fix


@pytest.mark.slow
def test_a_model_that_differs_is_refused(bundle: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(bundle, wrong)
    arrays = npz.read_arrays(bundle / "reference.npz")
    for name, array in arrays.items():
        array[0] *= -1 if "/out/" in name else 1
    npz.write_arrays(wrong / "reference.npz", arrays)
    with pytest.raises(GateError, match="differs from the original"):
        run_stage(stage("torch.aot"), tmp_path, inputs={"model": wrong})


@pytest.mark.slow
def test_a_batch_of_any_size_stays_one(tmp_path: Path) -> None:
    """Exported with a small batch a convolution is compiled for 15 samples at most."""
    made = run_stage(
        stage("torch.aot"), tmp_path / "aot", inputs={"model": bundle_of(tmp_path, "cnn")["model"]}
    )
    assert "largest" not in made.figures
    assert aot.load(made["model"])([torch.zeros(99, 1, 8, 8)])[0].shape == (99, 10)


@pytest.mark.slow
def test_a_length_that_it_limits_by_itself_is_said(tmp_path: Path) -> None:
    made = run_stage(
        stage("torch.aot"), tmp_path / "aot", inputs={"model": bundle_of(tmp_path, "text")["model"]}
    )
    largest = made.figures["largest"]["length"]
    assert {a["label"]: a["max"] for a in aot.described(made["model"])["axes"]} == {
        "batch": None,
        "length": largest,
    }
    run = aot.load(made["model"])
    with pytest.raises(RuntimeError, match="too large at 1"):
        run([torch.zeros(1, largest + 1, dtype=torch.int64)])


@pytest.mark.slow
def test_the_hub_s_card_says_what_it_is_and_how_it_is_loaded(digits_aot: Path) -> None:
    files = {"model.pt2": Wanted(digits_aot, digits_aot.stat().st_size, "0" * 64)}
    text = card.text(Facts("me/digits", files, {}))
    assert "| AOTInductor | `model.pt2` |" in text
    snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    here = snippet.replace('hf_hub_download("me/digits", "model.pt2")', repr(str(digits_aot)))
    code = f"{here}\nassert outputs.shape == (1, 10)\n"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def package(path: Path, metadata: dict[str, Any]) -> Path:
    """Write what is a package by its names, without a line of machine code."""
    with zipfile.ZipFile(path, "w") as archive:
        place = "archive/data/aotinductor/model/model.wrapper"
        archive.writestr(f"{place}_metadata.json", json.dumps(metadata))
        archive.writestr(f"{place}.so", b"no machine code")
    return path


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        pytest.param(
            {"deploy_runner": '{"torch": "2.9.1"}'}, r"by torch 2\.9\.1, here is .*install", id="torch"
        ),
        pytest.param({"AOTI_MACHINE": "s390x"}, "compiled for s390x, this machine is", id="machine"),
        pytest.param({"AOTI_DEVICE_KEY": "cuda"}, "compiled for cuda, it is run on the CPU", id="device"),
        pytest.param({"deploy_runner": "{"}, "torch can't load model.pt2: ", id="damaged"),
    ],
)
def test_a_package_for_another_machine_is_refused_before_its_code_is_loaded(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnfitArtifact, match=said):
        aot.load(package(tmp_path / "model.pt2", metadata))


def test_a_package_for_a_processor_that_has_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "_flags", lambda: {"avx2", "fma", "f16c"})
    found = package(tmp_path / "model.pt2", {"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"})
    with pytest.raises(UnfitArtifact, match=r"with avx512_vnni, avx512bw, .*lacks \(set `isa: avx2`"):
        aot.load(found)


def test_serve_needs_trust_for_machine_code_and_refuses_an_exported_program(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    package(project.folder / "m.pt2", {})
    said = project.cli("serve", "m.pt2", exits=2).stderr
    assert "m.pt2 is a package of AOTInductor, which is machine code (if you trust it: --trust)" in said
    torch.export.save(
        torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),)), project.folder / "e.pt2"
    )
    assert "compile it with torch.aot" in project.cli("serve", "e.pt2", "--trust", exits=2).stderr


def test_without_a_compiler_one_sentence_says_so_and_doctor_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project")
    project.write("bundle/bundle.json", "{}")
    project.pipeline("aot: {uses: torch.aot, inputs: {model: bundle}}")
    said = project.cli("doctor", exits=1, PATH=str(tmp_path)).stdout
    assert (
        "FAIL g++: missing, needed by aot at pipeline.yaml:4:3 (install it, e.g. apt-get install g++)" in said
    )
    assert "ok   g++: " in project.cli("doctor", exits=None).stdout
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError, match="torch.aot needs the compiler g\\+\\+, which is not on the PATH"):
        run_stage(stage("torch.aot"), tmp_path / "run", inputs={"model": tmp_path})
