"""The factory's arguments from the configuration file that the training had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import Project

MODEL = """
from torch import nn

def build(width, depth=1, name=""):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

def whole(config, depth=1):
    return build(config["net"]["width"], depth)
"""
FILES = {
    "c.yaml": "width: 4\ndepth: 2\nname: &n net\n",
    "c.json": '{\n\t"width": 4,\n\t"depth": 2\n}',
    "c.toml": 'width = 4\ndepth = 2\nname = "net"\n',
    "c.cfg": "{width: 4, depth: 2}",
}


def prepared(
    tmp_path: Path, config: Path, *, layers: int, factory: str = "build", **kwargs: object
) -> StageRun:
    (tmp_path / "net.py").write_text(MODEL)
    torch.save(
        torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(layers))).state_dict(), tmp_path / "w.pt"
    )
    weights = run_stage(
        stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": tmp_path / "w.pt"}
    )
    return run_stage(
        stage("model.prepare"), tmp_path / "b", inputs={"weights": weights["weights"], "config": config},
        params={"factory": f"net.py:{factory}", "example": {"shape": [2, 4]}, "kwargs": kwargs}, project=tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_gives_the_arguments(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    made = prepared(tmp_path, tmp_path / name, layers=2)
    kwargs = json.loads((made["model"] / "bundle.json").read_text())["kwargs"]
    assert (kwargs["width"], kwargs["depth"]) == (4, 2)


def test_kwargs_come_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FILES["c.yaml"])
    prepared(tmp_path, tmp_path / "c.yaml", layers=3, depth=3)


def test_a_parameter_called_config_gets_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("net: {width: 4}\noptimizer: {lr: 0.1}\n")
    prepared(tmp_path, tmp_path / "c.yaml", layers=2, factory="whole", depth=2)


def test_a_changed_file_is_another_model(project: Project) -> None:
    project.write("net.py", MODEL)
    project.write("c.yaml", "width: 4\n")
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 4)).state_dict(), project.folder / "w.pt")
    project.pipeline(
        """
        weights: {uses: checkpoint.state_dict, inputs: {checkpoint: w.pt}}
        model: {uses: model.prepare, inputs: {weights: "${{ stages.weights.outputs.weights }}", config: c.yaml},
                with: {factory: "net.py:build", example: {shape: [2, 4]}}}
        """
    )
    assert project.states()["model"] == "ran"
    project.write("c.yaml", "width: 4\ndepth: 2\n")
    assert "c.yaml changed" in project.cli("explain", "model").stdout
    assert "missing 1.weight, 1.bias" in project.cli("run", exits=1).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n- 2\n", "the config is a list, not a mapping of names to values"),
        ("a: [1\n", "the config can't be read: while parsing"),
        ("a: 2026-01-01\n", "the config can't be read: Object of type date is not JSON serializable"),
        ("a: .nan\n", "the config can't be read: Out of range float values"),
        ("a: !!python/object/apply:os.system [id]\n", "the config can't be read: could not determine a constructor"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ), "the config can't be read: it has more than 100000 values"),
        ("width: 4\nlr: 0.1\n", "unexpected keyword argument 'lr'"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(StageError, match=said):
        prepared(tmp_path, tmp_path / "c.yaml", layers=1)
