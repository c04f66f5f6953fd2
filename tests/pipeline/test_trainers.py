"""Files as trainers leave them: read as they are, or refused in these words."""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploy_runner.stages.model import tensor_files
from tests.conftest import Project
from tests.pipeline.taking import assert_weights, refused, take, trained, weights


class Callbacks:
    """An object of a trainer's own class."""


def lightning(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What Trainer.save_checkpoint of Lightning 2.6 writes, with the types that its users put there."""
    hyper_parameters = {
        "args": argparse.Namespace(lr=0.1, folder=Path("runs/1")), "best": np.float64(0.5), "log": defaultdict(list),
        "optimizer": functools.partial(torch.optim.AdamW, lr=0.1), "act": nn.ReLU, "callbacks": Callbacks(),
    }  # fmt: skip
    return {
        "epoch": 1, "global_step": 8, "pytorch-lightning_version": "2.6.6", "state_dict": OrderedDict(state),
        "loops": {}, "callbacks": {"EarlyStopping{'monitor': 'x'}": {"best_score": torch.tensor(0.5), "wait": 1}},
        "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["model.", "net."])
def test_lightning_with_its_hyper_parameters_and_the_weights_of_its_criterion(
    tmp_path: Path, prefix: str
) -> None:
    state = {f"{prefix}{n}": t for n, t in weights().items()} | {"criterion.weight": torch.ones(3)}
    torch.save(lightning(state), tmp_path / "last.ckpt")
    assert_weights(take(tmp_path, tmp_path / "last.ckpt"), state, key="state_dict", epoch=1, other_keys=None)
    made = take(tmp_path, tmp_path / "last.ckpt", strip_prefix=prefix)
    assert_weights(made, weights(), stripped_prefix=prefix, dropped=["criterion.weight"])


class Calling:
    """What pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calling(nn.functional.relu, 1), "torch.nn.functional.relu"), (Calling(weights), f"{weights.__module__}.weights"),
        (Calling(subprocess.Popen, "true"), "subprocess.Popen"), (Calling(torch.load, "x"), "torch.serialization.load"),
    ],
    ids=["torch.nn", "own", "standard library", "torch"],
)  # fmt: skip
def test_a_call_beside_the_weights_is_refused_with_its_name(tmp_path: Path, call: Calling, name: str) -> None:
    torch.save({"model": weights(), "x": call}, tmp_path / "c.pt")
    refused(tmp_path, tmp_path / "c.pt", f"runs code: {name}; nothing was executed")


def test_timm_takes_the_trained_weights_and_says_that_there_are_averaged_ones(tmp_path: Path) -> None:
    ema = {name: tensor + 1 for name, tensor in weights().items()}
    content = {"epoch": 3, "arch": "resnet18", "state_dict": weights(), "optimizer": {"state": {}, "param_groups": []},
               "version": 2, "args": argparse.Namespace(model="resnet18"), "state_dict_ema": ema, "metric": 0.5}  # fmt: skip
    torch.save(content, tmp_path / "last.pth.tar")
    made = take(tmp_path, tmp_path / "last.pth.tar")
    assert_weights(made, weights(), key="state_dict", averaged=False, other_keys=["state_dict_ema"])
    made = take(tmp_path, tmp_path / "last.pth.tar", key="state_dict_ema")
    assert_weights(made, ema, key="state_dict_ema", averaged=True, other_keys=["state_dict"])


def test_averages_without_names_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    """What torch_ema's ExponentialMovingAverage.state_dict() gives."""
    ema = {
        "decay": 0.9,
        "num_updates": 3,
        "shadow_params": list(weights().values()),
        "collected_params": None,
    }
    torch.save({"model": weights(), "ema": ema}, tmp_path / "c.pt")
    assert_weights(take(tmp_path, tmp_path / "c.pt"), weights(), key="model")
    error = refused(
        tmp_path, tmp_path / "c.pt", "'ema' of the checkpoint is a list of 7 tensors without names", key="ema"
    )
    assert "ema.copy_to" in error.fix


def test_a_module_with_its_average_needs_trust(project: Project) -> None:
    """As ultralytics saves: whole modules of its own classes, in float16."""
    project.write("detector.py", "from torch import nn\nclass Net(nn.Module):\n"
                            "    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(2, 2)\n")  # fmt: skip
    project.write("train.py", "import torch, detector\ntorch.manual_seed(3)\nm = detector.Net().half()\n"
                              "torch.save({'epoch': -1, 'model': None, 'ema': m, 'train_args': {}}, 'best.pt')\n"
                              "torch.save(m.state_dict(), 'expected.pt')\n")  # fmt: skip
    subprocess.run([sys.executable, "train.py"], cwd=project.folder, check=True)
    best = project.folder / "best.pt"
    error = refused(
        project.folder,
        best,
        "is a pickled module, which contains code: detector.Net, torch.nn.modules.linear.Linear [(]",
    )
    assert "trust: true" in error.fix
    refused(project.folder, best, "needs code that isn't here: No module named 'detector'", trust=True)
    project.pipeline(
        "w: {uses: checkpoint.state_dict, trust: true, inputs: {checkpoint: best.pt}, with: {code: 'detector.py:Net'}}"
    )
    project.run()
    project.write("weights.safetensors", project.output("w.weights"))
    expected = torch.load(project.folder / "expected.pt")
    found = tensor_files.read(project.folder / "weights.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_arrays_are_weights(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights().items()}
    swapped = {"0.bias": arrays["0.bias"].astype(">f4")}
    np.savez_compressed(tmp_path / "w.npz", **arrays | swapped)
    assert_weights(take(tmp_path, tmp_path / "w.npz"), weights(), format="npz")


def test_arrays_that_torch_has_no_type_for_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones(3, np.longdouble))
    refused(
        tmp_path,
        tmp_path / "w.npz",
        "the arrays can't be weights: can't convert np.ndarray of type numpy.longdouble",
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_a_programs_weights_are_taken_with_trust(tmp_path: Path, kind: str) -> None:
    module, x = trained().eval(), torch.ones(2, 4)
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(module), tmp_path / "m")
    else:
        torch.export.save(torch.export.export(module, (x,)), tmp_path / "m")
    error = refused(tmp_path, tmp_path / "m", "not a checkpoint: loading it runs code")
    assert "trust: true" in error.fix
    assert_weights(take(tmp_path, tmp_path / "m", trust=True), weights(), format=kind)


def test_what_torchao_has_quantized_is_refused_with_what_to_do(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    module = nn.Sequential(nn.Linear(64, 64))
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    torch.save(module.state_dict(), tmp_path / "c.pt")
    error = refused(
        tmp_path,
        tmp_path / "c.pt",
        "contains weights that torchao has quantized: torchao.quantization.Int8Tensor",
    )
    assert "onnx.quantize_static" in error.fix
    refused(
        tmp_path,
        tmp_path / "c.pt",
        "'0.weight' of the state_dict is a Int8Tensor, made of several tensors",
        trust=True,
    )


def test_a_header_that_begins_like_a_pickle_is_that_of_safetensors(tmp_path: Path) -> None:
    """A header of 0x80 bytes: the file begins with the first byte of every pickle."""
    name = "w" * 70
    save_file({name: torch.ones(3)}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes()[:1] == b"\x80"
    assert_weights(take(tmp_path, tmp_path / "w.safetensors"), {name: torch.ones(3)}, format="safetensors")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"), (b"GGUF\x03", "is a GGUF file"), (b"\x1f\x8b\x08", "is compressed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (bytes(257) + b"ustar", "is a tar archive"), (b"<!DOCTYPE html><html>", "is a page of HTML"),
        (b"\x1c\x00\x00\x00TFL3", "is a TFLite file"),
    ],
)  # fmt: skip
def test_files_of_others_are_named(tmp_path: Path, start: bytes, said: str) -> None:
    (tmp_path / "c.pt").write_bytes(start + bytes(300))
    refused(tmp_path, tmp_path / "c.pt", said)


@pytest.mark.parametrize(
    "wrappers",
    [
        ("module.", "module."), ("_orig_mod.", "module."), ("module.", "_orig_mod."),
        ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."), ("module.", "_fsdp_wrapped_module.", "_orig_mod."),
    ],
    ids="".join,
)  # fmt: skip
def test_every_wrapper_around_every_other_is_taken_off(tmp_path: Path, wrappers: tuple[str, ...]) -> None:
    prefix, inner = "".join(wrappers), "".join(w for w in wrappers if w.startswith("_"))
    state = {f"{prefix}{name.replace('.', f'.{inner}', 1)}": t for name, t in weights().items()}
    torch.save({"net": state, "optim": {"state": {}, "param_groups": []}}, tmp_path / "c.pt")
    assert_weights(take(tmp_path, tmp_path / "c.pt"), weights(), key="net", stripped_prefix=prefix)
