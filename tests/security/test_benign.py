"""A hundred honest files of as many shapes: none is refused, and all come out as they went in."""

from __future__ import annotations

import argparse
import datetime
import enum
import functools
import io
import json
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from deploy_runner.errors import StageError
from deploy_runner.stages.model import npz, tensor_files
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import Project
from tests.security.corpus import onnx_model

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip


class Configuration(dict):  # type: ignore[type-arg]
    """A kind of dict, with attributes of its own, as those of yacs, EasyDict and Munch."""

    def __init__(self, **given: Any) -> None:
        super().__init__(given)
        self.frozen = True


class Steps(list):  # type: ignore[type-arg]
    """A kind of list."""


class Settings:
    """An object of the user's."""

    def __init__(self, name: str) -> None:
        self.name, self.mode = name, Mode.FAST


class Mode(enum.Enum):
    """An option of the user's."""

    FAST = "fast"


def _buffer(content: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer


def _packed() -> bytes:
    """Return a zip archive of something else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("logs/train.txt", "loss 0.5")
    return buffer.getvalue()


def tensor(dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(6).reshape(2, 3) % 2).to(dtype)


Save = Callable[[Any, Path], Any]


def _deflated(content: Any, path: Path) -> None:
    """Save, unpack and pack again, as an upload form or a file manager does."""
    with (
        zipfile.ZipFile(_buffer(content)) as saved,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        packed.mkdir(saved.namelist()[0].partition("/")[0])
        for name in saved.namelist():
            packed.writestr(name, saved.read(name))


WRITERS: dict[str, Save] = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}

LAYOUTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda w: w,
    "ordered": lambda w: OrderedDict(w),
    "model_state_dict": lambda w: {"epoch": 3, "model_state_dict": w, "loss": 0.5},
    "state_dict": lambda w: {"state_dict": OrderedDict(w), "hyper_parameters": {"lr": 0.1, "layers": [1, 2]}},
    "model": lambda w: {"model": w, "iteration": 5, "rng_state": torch.get_rng_state()},
    "module": lambda w: {"module": w, "dp_world_size": 4},
    "DDP": lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
    "compile": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "compile in DDP": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "average": lambda w: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in w.items()}},
    "ema": lambda w: {"ema_state_dict": w, "decay": 0.999},
    "numpy scalar": lambda w: {"model": w, "best": np.float64(0.5), "n": np.int64(3), "ok": np.bool_(True)},
    "numpy arrays": lambda w: {"model": w, "history": np.arange(9.0), "confusion": np.eye(3, dtype=np.int32), "names": np.array(["a", "b"])},
    "path": lambda w: {"model": w, "folder": Path("runs/1"), "data": Path("/data")},
    "dates": lambda w: {"model": w, "when": datetime.datetime.now(datetime.UTC), "day": datetime.date(2026, 1, 2), "took": datetime.timedelta(3)},
    "argparse": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1, data=Path("x"), resume=None)},
    "defaultdict": lambda w: {"model": w, "log": defaultdict(list, loss=[1.0, 0.5])},
    "sets and bytes": lambda w: {"model": w, "seen": {1, 2}, "raw": b"\x00\xff", "size": torch.Size([2, 3]), "kind": torch.float16},
    "nested": lambda w: {"model": w, "config": {"a": {"b": [{"c": (1, None, True, 2**70)}]}}, "text": "ü€😀"},
    "parameters": lambda w: {k: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in w.items()},
    "partial": lambda w: {"model": w, "hparams": {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}},
    "own classes": lambda w: {"model": w, "config": Settings("x"), "mode": Mode.FAST, "more": Configuration(a=Configuration(b=1), c=Steps([Mode.FAST])), "classes": {Settings: [Mode.FAST]}},
    "version": lambda w: {"model": w, "torch": torch.__version__, "queue": deque([1, 2], 3), "ns": types.SimpleNamespace(a=1)},
    "arrays for tensors": lambda w: {"model": {k: v.numpy() for k, v in w.items()}, "vocabulary": {"words": np.array(["a"])}},
    "bytes": lambda w: {"model": _buffer(w).getvalue(), "raw": b"PK", "logs": _packed()},
    "buffer": lambda w: {"model": _buffer(w), "empty": io.BytesIO()},
    "deep": lambda w: {"state": {"trainer": {"model": w}}, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
    "device": lambda w: {"model": w, "device": torch.device("cpu"), "complex": 1 + 2j},
}  # fmt: skip


def extracted(tmp_path: Path, path: Path) -> dict[str, torch.Tensor]:
    made = run_stage(stage("checkpoint.state_dict"), tmp_path / "run", inputs={"checkpoint": path})
    return load_file(made["weights"])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_by_every_writer(tmp_path: Path, layout: str, writer: str) -> None:
    weights = {"weight": tensor(torch.float32), "bias": torch.ones(2)}
    WRITERS[writer](LAYOUTS[layout](weights), tmp_path / "c.pt")
    found = extracted(tmp_path, tmp_path / "c.pt")
    assert sorted(found) == ["bias", "weight"]
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize("layout", ["numpy arrays", "DDP"])
def test_a_checkpoint_that_was_packed_again(tmp_path: Path, layout: str) -> None:
    weights = {
        "weight": torch.randn(60, 70),
        "bias": torch.ones(3, dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }
    _deflated(LAYOUTS[layout](weights), tmp_path / "c.pt")
    found = extracted(tmp_path, tmp_path / "c.pt")
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_modules_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    content = {
        "model": {"w": torch.ones(1)},
        "loss": torch.nn.CrossEntropyLoss(torch.ones(2)),
        "act": torch.nn.ReLU,
    }
    torch.save(content, tmp_path / "c.pt")
    assert list(extracted(tmp_path, tmp_path / "c.pt")) == ["w"]
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(StageError, match="is a pickled module, which contains code: torch.nn.modules.act"):
        extracted(tmp_path, tmp_path / "old.pt")


@pytest.mark.parametrize("container", ["zip", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_element(tmp_path: Path, dtype: torch.dtype, container: str) -> None:
    weights = {"weight": tensor(dtype)}
    (torch.save if container == "zip" else save_file)(weights, tmp_path / "c.bin")
    found = extracted(tmp_path, tmp_path / "c.bin")["weight"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), weights["weight"].view(torch.uint8))


def _optimizer(kind: Any, **settings: Any) -> Any:
    module = torch.nn.Linear(3, 2)
    optimizer = kind(module.parameters(), lr=0.1, **settings)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "Adamax"])
def test_every_usual_optimizer_beside_the_weights(tmp_path: Path, kind: str) -> None:
    torch.save(_optimizer(getattr(torch.optim, kind)), tmp_path / "c.pt")
    assert sorted(extracted(tmp_path, tmp_path / "c.pt")) == ["bias", "weight"]


SHAPES: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "a scalar": lambda: {"a": torch.tensor(3.0)},
    "nothing in it": lambda: {"a": torch.zeros(0, 3), "b": torch.ones(1)},
    "a view": lambda: {"a": torch.arange(100.0)[10:20]},
    "a transposed": lambda: {"a": torch.arange(6.0).reshape(2, 3).t()},
    "channels last": lambda: {"a": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)},
    "two views of one": lambda: dict(zip("ab", torch.arange(8.0).split(4), strict=True)),
    "tied": lambda: dict.fromkeys(("a", "b"), torch.ones(3)),
    "long names": lambda: {f"{'layer.' * 60}{i}.weight": torch.ones(1) for i in range(20)},
    "2,000 tensors": lambda: {f"layers.{i}.weight": torch.ones(2) for i in range(2000)},
    "nan and inf": lambda: {"a": torch.tensor([float("nan"), float("inf")])},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_tensors(tmp_path: Path, shape: str) -> None:
    weights = SHAPES[shape]()
    torch.save(weights, tmp_path / "c.pt")
    path = tmp_path / "run/outputs/weights.safetensors"
    run_stage(stage("checkpoint.state_dict"), tmp_path / "run", inputs={"checkpoint": tmp_path / "c.pt"})
    found = tensor_files.read(path)
    assert all(torch.equal(found[n], t) or t.isnan().any() for n, t in weights.items())


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numbers_are_read_as_they_are(tmp_path: Path, kind: Any, save: Any) -> None:
    arrays = {
        "x": np.arange(12).reshape(3, 4).astype(kind),
        "f": np.asfortranarray(np.eye(3)),
        "s": np.float32(2),
    }
    save(tmp_path / "a.npz", **arrays)
    found = npz.read_arrays(tmp_path / "a.npz")
    assert all(
        np.array_equal(found[n], np.asarray(a)) and found[n].dtype == np.asarray(a).dtype
        for n, a in arrays.items()
    )


def _internal(folder: Path) -> Path:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / "m.onnx",
    )
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "make",
    [
        _internal,
        lambda folder: onnx_model(folder / "m"),
        lambda folder: onnx_model(folder / "m", length="16", offset="0"),
    ],
    ids=["inside", "beside", "with an offset"],
)
def test_onnx_with_its_weights_inside_or_beside(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    report = run_stage(stage("onnx.check"), tmp_path / "run", inputs={"model": path})["report"]
    assert json.loads(report.read_text())["opset"] == 20


YAML = {
    "flow": 'stages: {a: {uses: text.upper, inputs: {text: in.txt}}}',
    "anchors": "vars: {a: &a '!'}\nstages:\n  a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: *a}}\n",
    "comments": "# one\nstages:  # two\n  a:\n    # three\n    uses: text.upper\n    inputs: {text: in.txt}\n",
    "quoted": 'stages:\n  "a": {"uses": "text.upper", "inputs": {"text": "in.txt"}}\n',
    "block text": "stages:\n  a:\n    uses: text.upper\n    inputs: {text: in.txt}\n    with:\n      suffix: |\n        one\n        two\n",
    "no is a string": "stages:\n  a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: no}}\n",
    "unicode": "stages:\n  a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: '€😀'}}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_honest_yaml_is_valid(project: Project, text: str) -> None:
    project.write("pipeline.yaml", f"version: 1\nname: honest\n{text}")
    assert project.cli("validate").stdout.startswith("pipeline.yaml: valid, 1 stage")
