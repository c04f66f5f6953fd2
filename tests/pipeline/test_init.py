"""`init`: two commands from what somebody has trained to a dry-run push, with nothing edited between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.conftest import DIGITS, ROOT, Project
from tests.models import hub

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()

class SmallNet(nn.Module):
    def __init__(self, width: int = 8, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.register_buffer("scale", torch.ones(1))
        self.head = nn.Linear(width, classes)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image)).mean((2, 3)) * self.scale)

class OtherNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(x)
"""


def nets() -> dict[str, Any]:
    made: dict[str, Any] = {}
    exec(NETS, made)
    return made


@pytest.fixture
def here(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path / "project")


def pushed(project: Project, path: str, *options: str, goal: str = "hub") -> dict[str, Any]:
    """Start from a path, run what was written as it is, and return the run's stages."""
    project.cli("init", path, "--goal", goal, *options)
    stages: dict[str, Any] = project.run()["stages"]
    assert {stage["state"] for stage in stages.values()} == {"ran"}
    last = stages["hub" if goal == "hub" else "endpoint"]
    assert last["figures"]["repo" if goal == "hub" else "endpoint_config"]
    return stages


def written(project: Project) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((project.folder / "pipeline.yaml").read_text())["stages"]
    return loaded


@pytest.mark.slow
def test_a_lightning_checkpoint_beside_its_code(here: Project) -> None:
    here.write("code/nets.py", NETS)
    net = nets()["SmallNet"](width=16, classes=3)
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    content = {
        "epoch": 4, "pytorch-lightning_version": "2.6.6", "state_dict": {**state, "criterion.weight": torch.ones(3)},
        "hyper_parameters": {"classes": 3, "lr": 0.1}, "optimizer_states": [],
    }  # fmt: skip
    torch.save(content, here.folder / "last.ckpt")
    stages = pushed(here, "last.ckpt")
    assert written(here)["model"]["with"] == {
        "factory": "code/nets.py:SmallNet",
        "kwargs": {"width": 16, "classes": 3},
        "example": {"shape": [1, 3, 224, 224]},
    }
    assert stages["weights"]["figures"]["epoch"] == 4
    head = (here.folder / "pipeline.yaml").read_text()
    assert "by Lightning 2.6.6, epoch 4" in head
    assert "# from model.scale [1] to criterion.weight [3]" in head
    assert head.startswith("# yaml-language-server: $schema=pipeline.schema.json\n")


@pytest.mark.slow
def test_a_repository_has_a_name_that_the_hub_takes(tmp_path: Path) -> None:
    project = Project(tmp_path / "my--model..v2.git")
    shutil.copy(ROOT / "examples/detector/detector.onnx", project.folder)
    project.cli("init", "detector.onnx", "--goal", "hub")
    project.cli("validate")
    assert written(project)["hub"]["with"]["repo"] == "my-model.v2"


@pytest.mark.slow
def test_a_folder_of_a_sentence_classifier(here: Project) -> None:
    hub.saved("bert", here.folder / "classifier")
    pushed(here, "classifier")
    assert written(here)["model"] == {"uses": "model.transformers", "inputs": {"folder": "classifier"}}
    assert written(here)["hub"]["inputs"]["folder"] == "classifier"
    files = json.loads(here.output("hub.transcript"))["files"]
    assert {"model.safetensors", "config.json", "onnx/model.onnx"} <= set(files)


@pytest.mark.slow
def test_a_checkpoint_of_timm(here: Project) -> None:
    import timm

    net = timm.create_model("mobilenetv3_small_050", num_classes=5, in_chans=1)
    args = {"arch": "mobilenetv3_small_050", "epoch": 2, "state_dict": net.state_dict()}
    torch.save(args, here.folder / "checkpoint-2.pth.tar")
    pushed(here, "checkpoint-2.pth.tar", goal="sagemaker")
    assert written(here)["model"]["with"] == {
        "factory": "timm:create_model",
        "kwargs": {"model_name": "mobilenetv3_small_050", "num_classes": 5, "in_chans": 1},
        "example": {"shape": [1, 1, 224, 224]},
    }


@pytest.mark.slow
def test_a_checkpoint_of_torchvision_is_told_by_its_weights(here: Project) -> None:
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), here.folder / "best.pt")
    pushed(here, "best.pt")
    assert written(here)["model"]["with"]["factory"] == "torchvision.models:resnet18"
    assert written(here)["model"]["with"]["kwargs"] == {"num_classes": 4}


@pytest.mark.slow
def test_weights_alone_are_a_beginning(here: Project) -> None:
    shutil.copy(DIGITS / "digits.pt", here.folder)
    assert "nothing that builds this model was found" in here.cli("init", "digits.pt").stdout
    assert here.run()["ran"] == 1
    assert (
        "#   with: {factory: model.py:build, example: {shape: [1, 3, 224, 224]}}"
        in (here.folder / "pipeline.yaml").read_text()
    )


@pytest.mark.slow
def test_what_lies_elsewhere_is_copied_only_if_that_is_asked_for(here: Project, tmp_path: Path) -> None:
    shutil.copy(DIGITS / "digits.pt", tmp_path / "best.pt")
    here.write("model.py", (DIGITS / "model.py").read_text())
    options = ("--factory", "model.py:build", "--shape", "1,1,8,8")
    said = here.cli("init", "../best.pt", *options, exits=2).stderr
    assert "is outside the project" in said
    assert "(copy its 676.3 KiB with --copy, or name a folder that contains it)" in said
    wrong = here.cli(
        "init", "../best.pt", "--copy", "--factory", "model.py:build", "--shape", "1,3,8,8", exits=2
    )
    assert "forward() refuses shape [1, 3, 8, 8]" in wrong.stderr
    assert [path.name for path in here.folder.iterdir()] == ["model.py"]
    said = here.cli("init", "../best.pt", "--copy", *options).stdout
    assert "copied ../best.pt to best.pt, 676.3 KiB" in said
    assert "now: deploy-runner run pipeline.yaml" in said
    assert here.run()["ran"] == 5
    assert "pipeline.yaml already exists" in here.cli("init", "best.pt", exits=2).stderr


@pytest.mark.slow
def test_the_workflow_lies_in_the_repository_of_the_project(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    inner = Project(tmp_path / "models/digits")
    for name in ("digits.pt", "model.py"):
        shutil.copy(DIGITS / name, inner.folder)
    inner.cli("init", "digits.pt", "--goal", "docker", "--ci")
    assert not (inner.folder / "configs").exists()
    assert written(inner)["image"]["with"] == {"name": "digits"}
    workflow = (tmp_path / ".github/workflows/deploy.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"]
    assert [jobs[name]["steps"][-1]["with"]["working-directory"] for name in jobs] == ["models/digits"] * 2
    root = Project(tmp_path / "root")
    (root.folder / ".git").mkdir()
    shutil.copy(ROOT / "examples/detector/detector.onnx", root.folder)
    root.cli("init", "detector.onnx", "--ci")
    made = (root.folder / ".github/workflows/deploy.yml").read_text()
    assert made == (ROOT / "examples/github-workflow/deploy.yml").read_text()


def mar(folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "net.mar", "w") as archive:
        manifest = {
            "model": {"serializedFile": "net.pt", "modelFile": "net.py", "handler": "image_classifier"}
        }
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("net.pt", b"")


def adapter(folder: Path) -> None:
    (folder / "lora").mkdir()
    (folder / "lora/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"})
    )


def script(folder: Path) -> None:
    (folder / "train.py").write_text(NETS)


def whole_module(folder: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "whole.pt")


def estimator(folder: Path) -> None:
    import pickle

    (folder / "model.pkl").write_bytes(pickle.dumps({"coef": [1.0, 2.0]}))


def misfit(folder: Path) -> None:
    (folder / "nets.py").write_text(NETS)
    state = {
        "stem.weight": torch.ones(8, 3, 5, 5),
        "blocks.0.x": torch.ones(1),
        "head.weight": torch.ones(10, 8),
    }
    torch.save(state, folder / "best.pt")


@pytest.mark.parametrize(
    ("make", "path", "said"),
    [
        (mar, "net.mar", "the file is an archive of TorchServe (unzip it, and start from net.pt with --factory net.py:CLASS)"),
        (adapter, "lora", "lora is a LoRA adapter of org/base"),
        (script, "train.py", "deploy-runner init CHECKPOINT --factory train.py:Block"),
        (whole_module, "whole.pt", "if you trust it"),
        (estimator, "model.pkl", "is a pickle that torch.save did not write"),
        (misfit, "best.pt", "nets.py:SmallNet doesn't build this model: the checkpoint doesn't match the model"),
        (script, "nothing.pt", "nothing.pt does not exist"),
    ],
    ids=["mar", "adapter", "script", "whole module", "estimator", "misfit", "nothing"],
)  # fmt: skip
def test_what_can_not_work_is_one_sentence(here: Project, make: Any, path: str, said: str) -> None:
    make(here.folder)
    before = sorted(here.folder.rglob("*"))
    assert said in here.cli("init", path, "--goal", "sagemaker", exits=2).stderr
    assert sorted(here.folder.rglob("*")) == before


def test_an_onnx_file_has_no_program_for_phones(here: Project) -> None:
    shutil.copy(ROOT / "examples/detector/detector.onnx", here.folder)
    assert (
        "ExecuTorch takes no .onnx file"
        in here.cli("init", "detector.onnx", "--goal", "mobile", exits=2).stderr
    )


@pytest.mark.slow
def test_arguments_and_inputs_are_found_for_words_too(here: Project) -> None:
    here.write(
        "words.py",
        """
        from torch import nn

        class Reader(nn.Module):
            def __init__(self, vocabulary: int, width: int = 16, kinds: int = 2):
                super().__init__()
                self.words = nn.Embedding(vocabulary, width)
                self.rnn = nn.GRU(width, width, batch_first=True)
                self.out = nn.Linear(width, kinds)

            def forward(self, tokens):
                return self.out(self.rnn(self.words(tokens))[0].mean(1))
        """,
    )
    made: dict[str, Any] = {}
    exec((here.folder / "words.py").read_text(), made)
    content = {"model": made["Reader"](50, 24, 3).state_dict(), "config": {"vocabulary": 50, "lr": 0.1}}
    torch.save(content, here.folder / "reader.pt")
    here.cli("init", "reader.pt")
    assert written(here)["model"]["with"] == {
        "factory": "words.py:Reader",
        "kwargs": {"vocabulary": 50, "width": 24, "kinds": 3},
        "example": {"shape": [1, 16], "dtype": "int64", "high": 50},
        "dynamic": {"tokens": {"0": "batch", "1": "sequence"}},
    }
    assert here.run()["failed"] == 0


ALIKE = """
from torch import nn

class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x){end}
"""


@pytest.mark.slow
def test_two_classes_that_fit_are_both_named(here: Project) -> None:
    here.write("v1.py", ALIKE.format(name="One", end=""))
    here.write("v2.py", ALIKE.format(name="One", end=".relu()"))
    torch.save(nn.ModuleDict({"a": nn.Linear(4, 2)}).state_dict(), here.folder / "best.pt")
    said = here.cli("init", "best.pt").stdout
    assert "the weights fit v2.py:One as well: make sure that this is the right one" in said
    assert here.run()["failed"] == 0


@pytest.mark.slow
def test_a_module_that_a_script_has_pickled_of_its_own_class(here: Project) -> None:
    here.write("train.py", ALIKE.format(name="Net", end="") + 'import torch\ntorch.save(Net(), "whole.pt")\n')
    subprocess.run([sys.executable, "train.py"], cwd=here.folder, check=True)
    here.write("train.py", ALIKE.format(name="Net", end=""))
    assert "or, if you trust it, add --trust" in here.cli("init", "whole.pt", exits=2).stderr
    here.cli("init", "whole.pt", "--trust")
    assert written(here)["weights"]["with"] == {"code": "train.py:Net"}
    assert here.run()["failed"] == 0


@pytest.mark.slow
def test_the_file_in_a_hub_folder_is_the_folder(here: Project) -> None:
    hub.saved("bert", here.folder / "m")
    said = here.cli("init", "m/model.safetensors", exits=2).stderr
    assert (
        "is the file of a model of transformers, whose config.json lies beside it (name the folder: m)"
        in said
    )
    shutil.copytree(here.folder / "m", here.folder, dirs_exist_ok=True)
    assert ". is the project itself (name it from the folder above" in here.cli("init", ".", exits=2).stderr


class Matched(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 7, 11) @ y.reshape(-1, 11, 13)


class Resampled(nn.Module):
    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        return x * rate


@pytest.mark.slow
def test_programs_are_taken_with_trust(here: Project) -> None:
    net = nets()["SmallNet"]().eval()
    torch.jit.trace(net, torch.ones(1, 3, 16, 16)).save(str(here.folder / "net.pt"))
    said = here.cli("init", "net.pt", exits=2).stderr
    assert "the file is a TorchScript program: loading it runs code" in said
    assert "add --trust" in said
    for name, module in (("two.pt", Matched()), ("rate.pt", Resampled())):
        torch.jit.script(module).save(str(here.folder / name))
    said = here.cli("init", "two.pt", "--trust", exits=2).stderr
    assert (
        "or write a pipeline with `model.program` and `example: {x: {shape: […]}, y: {shape: […]}}`" in said
    )
    said = here.cli("init", "rate.pt", "--trust", exits=2).stderr
    assert "requires 'rate' of type int, and only tensors can be given" in said
    stages = pushed(here, "net.pt", "--trust")
    assert stages["model"]["figures"]["kind"] == "torchscript"
    assert written(here)["model"]["with"] == {"example": {"shape": [1, 3, 224, 224]}}
    other = Project(here.folder.parent / "other")
    program = torch.export.export(
        net, (torch.ones(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(program, other.folder / "net.pt2")
    assert pushed(other, "net.pt2", "--trust", goal="sagemaker")["model"]["figures"]["kind"] == "pt2"
