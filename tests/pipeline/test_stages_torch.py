"""checkpoint.state_dict, model.prepare, torch.trace and torch.script on real files."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import re
import struct
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import CASES, MODELS, bundle, line_of, stage
from tests.conftest import DIGITS


def extract(
    tmp_path: Path, content: Any, *, name: str = "c.pt", params: dict[str, Any] | None = None, **ctx: Any
) -> StageRun:
    path = tmp_path / name
    if not path.exists():
        torch.save(content, path)
    return run_stage(
        stage("checkpoint.state_dict"), tmp_path / "run", inputs={"checkpoint": path}, params=params, **ctx
    )


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize(
    ("wrap", "params"),
    [
        pytest.param(lambda w: w, {}, id="bare"),
        pytest.param(lambda w: {"epoch": 1, "model_state_dict": w}, {}, id="model_state_dict"),
        pytest.param(lambda w: {"state_dict": w}, {}, id="state_dict"),
        pytest.param(lambda w: {"model": w}, {}, id="model"),
        pytest.param(lambda w: {f"module.{k}": v for k, v in w.items()}, {}, id="DDP"),
        pytest.param(lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()}, {}, id="compile and DDP"),
        pytest.param(lambda w: {"n_averaged": torch.tensor(5)} | {f"module.{k}": v for k, v in w.items()}, {}, id="AveragedModel"),
        pytest.param(lambda w: {"epoch": 1, "state_dict_ema": {f"_orig_mod.{k}": v for k, v in w.items()}}, {}, id="EMA and compile"),
        pytest.param(lambda w: {"ema": {"n_averaged": torch.tensor(5)} | {f"module._orig_mod.module.{k}": v for k, v in w.items()}},
                     {}, id="EMA, compile and DDP"),
        pytest.param(lambda w: {"_orig_mod.n_averaged": torch.tensor(5)} | {f"_orig_mod.module.{k}": v for k, v in w.items()},
                     {}, id="a compiled AveragedModel"),
        pytest.param(lambda w: {"model": {f"_fsdp_wrapped_module.{k}": v for k, v in w.items()}}, {}, id="FSDP"),
        pytest.param(lambda w: {"model": w | {"_extra_state": {"scale": 1}}}, {}, id="an extra state"),
        pytest.param(lambda w: {"a": {"b": w}}, {"key": "a.b"}, id="a key of one's own"),
        pytest.param(lambda w: {"state_dict": {f"net.{k}": v for k, v in w.items()} | {"x": torch.ones(1)}},
                     {"strip_prefix": "net."}, id="a prefix of one's own"),
    ],
)  # fmt: skip
def test_every_usual_layout_gives_the_same_weights(tmp_path: Path, wrap: Any, params: dict[str, Any]) -> None:
    made = load_file(extract(tmp_path, wrap(weights()), params=params)["weights"])
    assert sorted(made) == ["bias", "weight"]
    assert all(torch.equal(made[name], tensor) for name, tensor in weights().items())


def test_the_names_of_wrapped_submodules_are_those_of_the_model(tmp_path: Path) -> None:
    content = {
        "module.encoder._orig_mod.w": torch.ones(1),
        "module.head._checkpoint_wrapped_module.w": torch.ones(2),
    }
    assert sorted(load_file(extract(tmp_path, content)["weights"])) == ["encoder.w", "head.w"]


def test_an_empty_prefix_keeps_the_names(tmp_path: Path) -> None:
    made = extract(tmp_path, {"module.weight": torch.ones(1)}, params={"strip_prefix": ""})
    assert sorted(load_file(made["weights"])) == ["module.weight"]


def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    content = {"b": torch.ones(3, 2), "a": torch.ones(1, dtype=torch.int64), "h": torch.ones(3, dtype=torch.bool),
               "empty": torch.ones(0, 4), "t": torch.arange(6.0).reshape(2, 3).t(), "one": torch.tensor(3.0)}  # fmt: skip
    made = extract(tmp_path, content)["weights"]
    save_file({k: v.contiguous() for k, v in content.items()}, tmp_path / "theirs", {"format": "pt"})
    assert made.read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight": "a.safetensors", "bias": "a.safetensors"}, "the tensor 'bias' of model.safetensors.index.json is not in its shard a.safetensors"),
        ({"weight": "b.safetensors"}, "lists the shard 'b.safetensors', which is not in the folder"),
        ({"weight": "../a.safetensors"}, "lists the shard '../a.safetensors'"),
    ],
)  # fmt: skip
def test_an_index_that_its_shards_do_not_hold_is_refused(tmp_path: Path, index: Any, said: str) -> None:
    (tmp_path / "c.pt").mkdir()
    save_file({"weight": torch.ones(1)}, tmp_path / "c.pt/a.safetensors")
    (tmp_path / "c.pt/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(StageError, match=said):
        extract(tmp_path, None)
    with pytest.raises(StageError, match="is the index of a sharded checkpoint"):
        extract(tmp_path, None, name="c.pt/model.safetensors.index.json")


def test_legacy_files_safetensors_and_shards_are_read(tmp_path: Path) -> None:
    torch.save(dict(weights()), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), tmp_path / "w.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    save_file({"weight": weights()["weight"]}, shards / "model-1.safetensors")
    save_file({"bias": weights()["bias"]}, shards / "model-2.safetensors")
    index = {"weight_map": {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    found = {
        name: run_stage(stage("checkpoint.state_dict"), tmp_path / "run" / name, inputs={"checkpoint": tmp_path / name})["weights"].read_bytes()
        for name in ("old.pt", "w.safetensors", "shards")
    }  # fmt: skip
    assert len(set(found.values())) == 1


def test_what_training_loops_write_is_accepted_and_told(tmp_path: Path) -> None:
    content = {
        "model_state_dict": weights(),
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "best_acc": (np.arange(4) == np.arange(4)).mean(),
        "history": np.arange(5.0),
        "when": datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC),
        "path": Path("runs/1"),
        "args": argparse.Namespace(lr=0.1),
        "counts": defaultdict(int, a=1),
    }
    made = extract(tmp_path, content)
    training = json.loads(made["metadata"].read_text())["training"]
    when = "2026-11-24T00:00:00+00:00"
    assert training == {"epoch": 3, "best_acc": 1.0, "loss": 0.5, "when": when, "path": "runs/1"}


def test_tied_tensors_are_written_once_and_survive(tmp_path: Path) -> None:
    tied = torch.ones(4, 2)
    made = extract(tmp_path, {"embed.weight": tied, "head.weight": tied, "view": torch.zeros(10)[2:4]})
    assert json.loads(made["metadata"].read_text())["tied"] == {"head.weight": "embed.weight"}
    assert sorted(load_file(made["weights"])) == ["embed.weight", "view"]


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path, legacy: bool) -> None:
    canary = tmp_path / "canary"
    content = {"model_state_dict": weights(), "x": _Evil(str(canary))}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(StageError, match="runs code: posix.system; nothing was executed"):
        extract(tmp_path, None)
    assert not canary.exists()


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 2), tmp_path / "c.pt")
    with pytest.raises(StageError, match="is a pickled module, which contains code") as error:
        extract(tmp_path, None)
    assert "trust: true" in error.value.fix
    assert sorted(load_file(extract(tmp_path, None, trust=True)["weights"])) == ["bias", "weight"]


def _truncated(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-200])


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000_000)


def _torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("write", "said"),
    [
        pytest.param(lambda p: p.write_bytes(b""), "the checkpoint is empty", id="empty"),
        pytest.param(lambda p: p.write_bytes(b"hello world, no checkpoint"), "not a checkpoint", id="junk"),
        pytest.param(_truncated, "truncated or damaged", id="truncated"),
        pytest.param(_zip, "that torch.save did not write", id="another zip"),
        pytest.param(_compressed, "is compressed, and would expand to 0.1 GB", id="a zip bomb"),
        pytest.param(_torchscript, "is a TorchScript program, not a checkpoint", id="TorchScript"),
        pytest.param(lambda p: p.mkdir(), "a folder without", id="a folder"),
        pytest.param(lambda p: p.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "not a checkpoint", id="huge header"),
        pytest.param(lambda p: p.write_bytes(struct.pack("<Q", 4) + b'{"a"' + b"x" * 30), "safetensors file is damaged",
                     id="bad safetensors"),
        pytest.param(lambda p: p.write_bytes(pickle.dumps({"a": 1}, protocol=4)), "pickle that torch.save did not write",
                     id="a bare pickle"),
        pytest.param(lambda p: torch.save({"a": torch.ones(1)}, p, pickle_protocol=4), "pickle protocol 4 or newer", id="protocol 4"),
        pytest.param(lambda p: torch.save({"loss": 1.0, "epoch": 2}, p), "only loss, epoch", id="no state_dict"),
        pytest.param(lambda p: torch.save({"w": torch.ones(1), "epoch": 2}, p), "'epoch' of the state_dict is a int, not a tensor", id="mixed"),
        pytest.param(lambda p: torch.save({"model": weights(), "x": np.array([{}], dtype=object)}, p), "array of Python objects", id="objects"),
        pytest.param(lambda p: torch.save([1, 2], p), "contains a list, not a mapping", id="a list"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_with_its_reason(tmp_path: Path, write: Any, said: str) -> None:
    write(tmp_path / "c.pt")
    with pytest.raises(StageError, match=said):
        extract(tmp_path, None)


def test_an_unknown_key_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no key 'ema', only model_state_dict, epoch"):
        extract(tmp_path, {"model_state_dict": weights(), "epoch": 1}, params={"key": "ema"})


def test_prepare_stores_cases_of_several_sizes_and_the_code(tmp_path: Path) -> None:
    made = bundle(tmp_path, "text", example={"shape": [1, 5], "dtype": "int64", "high": 11},
                  dynamic={"tokens": {"0": "batch", "1": "length"}})["model"]  # fmt: skip
    with np.load(made / "reference.npz") as arrays:
        shapes = {arrays[name].shape for name in arrays.files if "/in/" in name}
    assert shapes == {(2, 5), (1, 8), (5, 11)}
    assert (made / "code/models.py").read_text() == MODELS
    described = json.loads((made / "bundle.json").read_text())
    assert described["inputs"][0]["dynamic"] == {"0": "batch", "1": "length"}
    assert described["outputs"][0]["dynamic"] == {"0": "batch"}


def test_several_inputs_and_a_dict_of_outputs_keep_their_names(tmp_path: Path) -> None:
    example = {"right": {"shape": [1, 4]}, "left": {"shape": [1, 4]}}
    described = json.loads((bundle(tmp_path, "two", example=example)["model"] / "bundle.json").read_text())
    assert [p["name"] for p in described["inputs"]] == ["left", "right"]
    assert [p["name"] for p in described["outputs"]] == ["sum", "difference"]


def test_tied_weights_fit_the_model_again(tmp_path: Path) -> None:
    made = bundle(tmp_path, "tied", example={"shape": [1, 3], "dtype": "int64", "high": 7})
    assert made.figures["checks"] == 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("counting", "no training-only state (a forward pass modifies ['calls'])"),
        ("random", "deterministic (two runs differ: the model uses random numbers, or keeps state"),
    ],
)
def test_the_checklist_refuses_and_names_the_line(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(GateError, match=re.escape(said)):
        bundle(tmp_path, name, example={"shape": [1, 4]})


def test_a_checkpoint_that_does_not_fit_lists_every_difference(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"linear.weight": torch.ones(3, 5), "other": torch.ones(1)}, path)
    made = run_stage(stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": path})
    project = tmp_path / "project"
    project.mkdir()
    (project / "models.py").write_text(MODELS)
    said = ("the checkpoint doesn't match the model: missing linear.bias; unexpected other; "
            "shapes differ: linear.weight is (3, 5), the model requires (3, 4)")  # fmt: skip
    with pytest.raises(StageError, match=rf"\A{re.escape(said)}"):
        run_stage(stage("model.prepare"), tmp_path / "b", inputs={"weights": made["weights"]},
                  params={"factory": "models.py:branch", "example": {"shape": [1, 4]}}, project=project)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("branch", {"example": {"shape": [1, 9]}}, r"the model fails on the example x \(2, 9\): .* at models.py:"),
        ("branch", {"example": {"shape": [1, 4]}, "expect_shape": [1, 7]}, r"expected shapes .output is \[2, 3\], expected \[2, 7\]"),
        ("branch", {"example": {"y": {"shape": [1, 4]}}}, r"forward\(\) has no argument 'y', it has x"),
        ("branch", {"example": {"shape": [1, 4]}, "dynamic": {"x": {"7": "n"}}}, "has no axis 7"),
        ("wrong", {"example": {"shape": [1, 4]}}, "models.py:wrong returned int, not an nn.Module"),
    ],
)  # fmt: skip
def test_a_wrong_example_is_one_sentence(
    tmp_path: Path, name: str, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        bundle(tmp_path, name, **params)


@pytest.mark.parametrize("name", CASES)
def test_traces_and_onnx_exports_agree_with_eager_on_every_model(tmp_path: Path, name: str) -> None:
    model = bundle(tmp_path, name, **CASES[name])["model"]
    exported = run_stage(stage("onnx.export"), tmp_path / "onnx", inputs={"model": model})
    assert exported.figures["opset"] == 20
    assert exported.figures["argmax_agreement"] == 1.0
    traced = run_stage(stage("torch.trace"), tmp_path / "trace", inputs={"model": model})
    assert traced.figures["max_abs"] < 1e-5


@pytest.mark.parametrize(
    "uses",
    [
        "torch.save_full",
        "torch.trace",
        "torch.script",
        "torch.export",
        "onnx.export",
        "mobile.lite",
        "mobile.executorch",
    ],
)
def test_outputs_inside_of_each_other_come_out_flat(tmp_path: Path, uses: str) -> None:
    params = {"example": {"shape": [1, 4]}, "output_names": ["a", "b", "c", "d"]}
    model = bundle(tmp_path, "nested", **params)["model"]
    made = run_stage(stage(uses), tmp_path / "n", inputs={"model": model})
    assert made.figures["max_abs"] < 1e-6


def test_control_flow_on_data_is_refused_by_trace_and_kept_by_script_and_onnx(tmp_path: Path) -> None:
    model = bundle(tmp_path, "branch", example={"shape": [2, 4]})["model"]
    with pytest.raises(
        StageError, match=f"control flow depends on its data at {line_of('if x.sum')}"
    ) as error:
        run_stage(stage("torch.trace"), tmp_path / "trace", inputs={"model": model})
    assert "torch.script" in error.value.fix
    assert (
        run_stage(stage("torch.script"), tmp_path / "script", inputs={"model": model}).figures["max_abs"]
        == 0.0
    )
    exported = run_stage(stage("onnx.export"), tmp_path / "onnx", inputs={"model": model})
    assert exported.figures["exporter"] == "torchscript"


def test_torchscript_bytes_hold_no_path(tmp_path: Path) -> None:
    model = bundle(tmp_path, "memory", **CASES["memory"])["model"]
    made = run_stage(stage("torch.trace"), tmp_path / "t", inputs={"model": model})["model"].read_bytes()
    assert str(tmp_path).encode() not in made
    assert b"debug_pkl" not in made


def test_the_example_checkpoint_is_what_its_script_makes() -> None:
    content = torch.load(DIGITS / "digits.pt", weights_only=False)
    assert list(content) == ["epoch", "model_state_dict", "optimizer_state_dict", "loss", "best_acc"]
    assert content["best_acc"] > 0.97
    assert (DIGITS / "digits.pt").stat().st_size < 1_000_000
    assert content["optimizer_state_dict"]["state"]
    with np.load(DIGITS / "heldout.npz") as held, np.load(DIGITS / "calibration.npz") as calibration:
        seen = {row.tobytes() for row in held["x"]}
        assert not [row for row in calibration["x"] if row.tobytes() in seen]
