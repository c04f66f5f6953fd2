"""Checkpoints as trainers leave them: their files and folders, read as they are or refused in these words."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as dcp

from deploy_runner.errors import StageError
from deploy_runner.stages.model import tensor_files
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import Project


def trained() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def weights() -> dict[str, torch.Tensor]:
    return dict(trained().state_dict())


def take(
    folder: Path, checkpoint: Path, *, base: Path | None = None, trust: bool = False, **params: Any
) -> StageRun:
    inputs = {"checkpoint": checkpoint} | ({"base": base} if base else {})
    return run_stage(
        stage("checkpoint.state_dict"), folder / "run", inputs=inputs, params=params, trust=trust
    )


def assert_weights(made: StageRun, expected: dict[str, torch.Tensor], **figures: Any) -> None:
    found = tensor_files.read(made["weights"])
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert {name: made.figures.get(name) for name in figures} == figures


def refused(folder: Path, checkpoint: Path, said: str, **given: Any) -> StageError:
    with pytest.raises(StageError, match=said) as error:
        take(folder, checkpoint, **given)
    assert "\n" not in error.value.message
    return error.value


# Files -------------------------------------------------------------------------------------


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
        (Calling(nn.functional.relu, 1), "torch.nn.functional.relu"), (Calling(weights), f"{__name__}.weights"),
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
    project.write("net.py", "from torch import nn\nclass Net(nn.Module):\n"
                            "    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(2, 2)\n")  # fmt: skip
    project.write("train.py", "import torch, net\ntorch.manual_seed(3)\nm = net.Net().half()\n"
                              "torch.save({'epoch': -1, 'model': None, 'ema': m, 'train_args': {}}, 'best.pt')\n"
                              "torch.save(m.state_dict(), 'expected.pt')\n")  # fmt: skip
    subprocess.run([sys.executable, "train.py"], cwd=project.folder, check=True)
    best = project.folder / "best.pt"
    error = refused(
        project.folder,
        best,
        "is a pickled module, which contains code: net.Net, torch.nn.modules.linear.Linear [(]",
    )
    assert "trust: true" in error.fix
    refused(project.folder, best, "needs code that isn't here: No module named 'net'", trust=True)
    project.pipeline(
        "w: {uses: checkpoint.state_dict, trust: true, inputs: {checkpoint: best.pt}, with: {code: 'net.py:Net'}}"
    )
    project.run()
    project.write("weights.safetensors", project.output("w.weights"))
    expected = torch.load(project.folder / "expected.pt")
    found = tensor_files.read(project.folder / "weights.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_arrays_are_weights(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights().items()}
    np.savez_compressed(tmp_path / "w.npz", **arrays)
    assert_weights(take(tmp_path, tmp_path / "w.npz"), weights(), format="npz")


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
        (bytes(257) + b"ustar", "is a tar archive"),
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


# Folders -----------------------------------------------------------------------------------


NEVER_READ = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin",
              "random_states_0.pkl", "sampler.bin", "scaler.pt")  # fmt: skip


def beside(folder: Path) -> Path:
    """Write what the Trainer and accelerate leave beside the weights: none of it may be read."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name in NEVER_READ:
        (folder / name).write_bytes(b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00trueR.")
    return folder


def shards(folder: Path, end: str, save: Any) -> Path:
    names = list(weights())
    places = {n: f"{'model' if end == 'safetensors' else 'pytorch_model'}-0000{1 + i % 2}-of-00002.{end}"
              for i, n in enumerate(names)}  # fmt: skip
    for place in set(places.values()):
        save({n: t for n, t in weights().items() if places[n] == place}, folder / place)
    index = folder / f"{places[names[0]].partition('-')[0]}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("end", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_trainers_folder_gives_its_weights_and_nothing_else_is_read(
    tmp_path: Path, end: str, sharded: bool
) -> None:
    folder, save = beside(tmp_path / "checkpoint-500"), save_file if end == "safetensors" else torch.save
    if sharded:
        shards(folder, end, save)
    else:
        save(weights(), folder / ("model.safetensors" if end == "safetensors" else "pytorch_model.bin"))
    made = take(tmp_path, folder)
    assert_weights(
        made, weights(), format="sharded" if sharded else {"safetensors": end, "bin": "torch"}[end]
    )
    assert json.loads(made["metadata"].read_text())["file"].endswith("index.json" if sharded else end)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_shards_that_are_missing_elsewhere_or_of_another_checkpoint_are_named(
    tmp_path: Path, end: str
) -> None:
    folder = beside(tmp_path / "f")
    index = shards(folder, end, save_file if end == "safetensors" else torch.save)
    said = json.loads(index.read_text())
    first = sorted(said["weight_map"].values())[0]
    for name in ("../x", f"../f/{first}", str(folder / first), "..", "sub/x"):
        index.write_text(json.dumps({"weight_map": said["weight_map"] | {"0.bias": name}}))
        refused(tmp_path, folder, f"index.json lists the shard {name!r}, which is not in the folder")
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {"2.bias": first}}))
    refused(tmp_path, folder, f"the tensor '2.bias' of {index.name} is not in its shard {first}")
    index.write_text(json.dumps(said))
    (folder / first).unlink()
    refused(tmp_path, folder, f"lists the shard '{first}', which is not in the folder")


def test_a_folder_without_one_checkpoint_says_what_to_use(tmp_path: Path) -> None:
    beside(tmp_path / "runs")
    refused(tmp_path, tmp_path / "runs", "runs is a folder without a checkpoint")
    shards(beside(tmp_path / "runs/step-9"), "safetensors", save_file)
    assert (
        refused(tmp_path, tmp_path / "runs", "without a checkpoint").fix
        == "use the folder inside it: step-9/"
    )
    torch.save(weights(), tmp_path / "runs/a.pt")
    assert_weights(take(tmp_path, tmp_path / "runs"), weights(), format="torch")
    torch.save(weights(), tmp_path / "runs/b.pt")
    assert (
        refused(tmp_path, tmp_path / "runs", "several files that may be checkpoints: a.pt, b.pt").fix
        == "use one of them"
    )


def deepspeed(folder: Path) -> Path:
    """What DeepSpeedEngine.save_checkpoint of ZeRO stages 0 to 2 writes."""
    step = folder / "global_step10"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step10")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    content: dict[str, Any] = {
        "module": weights(), "buffer_names": ["1.running_mean"], "optimizer": None, "ds_version": "0.19.8",
        "param_shapes": [OrderedDict(w=torch.Size([3, 4]))], "sparse_tensor_module_names": set(),
        "ds_config": {"zero_optimization": {"stage": 2}}, "dp_world_size": 2, "global_steps": 10,
    }  # fmt: skip
    torch.save(content, step / "mp_rank_00_model_states.pt")
    (step / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"never read")
    return step


def test_deepspeed_of_zero_1_and_2_is_read_and_zero_3_says_what_to_run(tmp_path: Path) -> None:
    step = deepspeed(tmp_path / "ds")
    for folder in (tmp_path / "ds", step):
        assert_weights(take(tmp_path, folder), weights(), format="torch", key="module")
    (step / "mp_rank_01_model_states.pt").write_bytes(b"x")
    refused(tmp_path, step, "a DeepSpeed checkpoint, split by pipeline or tensor parallelism")
    (step / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    assert "run `python zero_to_fp32.py " in refused(tmp_path, tmp_path / "ds", "of ZeRO stage 3").fix
    for name in ("../ds/global_step10", "global_step11", "", ".", ".."):
        (tmp_path / "ds/latest").write_text(name)
        refused(tmp_path, tmp_path / "ds", f"`latest` names the folder {name!r}, which is not in ds")


# torch.distributed.checkpoint --------------------------------------------------------------


def distributed(folder: Path, content: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=folder)
    return folder


def split(folder: Path, name: str = "model") -> Path:
    """What two processes of FSDP write: halves of each tensor by rows, each in its process's file."""
    from torch.distributed.checkpoint import metadata as m
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir()
    said: dict[str, Any] = {}
    places, paths = {}, {}
    for tensor_name, tensor in weights().items():
        chunks, fqn, at = [], f"{name}.{tensor_name}", 0
        for rank, part in enumerate(tensor.split([2, 1]) if tensor.dim() else [tensor]):
            offsets = torch.Size([at, *(0 for _ in part.shape[1:])] if tensor.dim() else [])
            chunks.append(m.ChunkStorageMetadata(offsets, part.shape))
            shard = folder / f"__{rank}_0.distcp"
            start = shard.stat().st_size if shard.exists() else 0
            with shard.open("ab") as file:
                torch.save(part.clone(), buffer := io.BytesIO())
                file.write(buffer.getvalue())
            index = m.MetadataIndex(fqn, offsets, rank)
            places[index] = _StorageInfo(shard.name, start, len(buffer.getvalue()))
            at += len(part) if tensor.dim() else 0
        properties = m.TensorProperties.create_from_tensor(tensor)
        said[fqn] = m.TensorStorageMetadata(properties, tensor.shape, chunks)
        paths[fqn] = (*name.split("."), tensor_name)
    content = m.Metadata(said, paths, places, m.StorageMeta(folder, "s"), "1.0.0")
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    return folder


def edit(folder: Path, change: Any) -> None:
    """Change what the metadata says."""
    path = folder / ".metadata"
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))


def move(content: Any, name: str, **place: Any) -> None:
    for index in content.storage_data:
        if index.fqn.startswith(name):
            content.storage_data[index] = dataclasses.replace(content.storage_data[index], **place)


@pytest.mark.parametrize("nested", [False, True])
def test_a_distributed_checkpoint_is_read_without_its_optimizer(tmp_path: Path, nested: bool) -> None:
    optimizer = torch.optim.AdamW(trained().parameters())
    content: dict[str, Any] = {"model": weights(), "optimizer": optimizer.state_dict(), "step": 3}
    folder = distributed(tmp_path / "d", {"app": content} if nested else content)
    edit(folder, lambda said: move(said, "app.optimizer" if nested else "optimizer", relative_path="gone"))
    made = take(tmp_path, folder)
    key = "app.model" if nested else "model"
    assert_weights(made, weights(), format="distributed", key=key, other_keys=None)
    assert json.loads(made["metadata"].read_text())["training"] == ({} if nested else {"step": 3})


@pytest.mark.parametrize("name", ["model", "app.model"])
def test_the_shards_of_several_processes_are_put_together(tmp_path: Path, name: str) -> None:
    one = take(tmp_path, split(tmp_path / "d", name))
    assert_weights(one, weights(), format="distributed", key=name)
    torch.save({"model": weights()}, tmp_path / "c.pt")
    whole = take(tmp_path / "whole", tmp_path / "c.pt")
    assert one["weights"].read_bytes() == whole["weights"].read_bytes()


SHARDED = """
import os, sys, torch, torch.multiprocessing as mp
from torch import nn, distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    dcp.save({"app": {"model": module.state_dict()}}, checkpoint_id=f"{folder}/d")
    torch.save(module.state_dict(), f"{folder}/rank{rank}.pt")

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
"""


@pytest.mark.slow
def test_what_two_processes_of_fsdp_save_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SHARDED)
    subprocess.run([sys.executable, "train.py", str(tmp_path)], cwd=tmp_path, check=True, capture_output=True)
    assert_weights(take(tmp_path, tmp_path / "d"), weights(), format="distributed", key="app.model")
    error = refused(
        tmp_path, tmp_path / "rank0.pt", r"contains one process's shards of the weights \(DTensor\)"
    )
    assert "full_state_dict=True" in error.fix


def again(content: Any) -> None:
    """Say that a thousand tensors more have the values of the first."""
    name = "model.0.weight"
    for number in range(1000):
        copy = f"copy.{number}"
        content.state_dict_metadata[copy] = content.state_dict_metadata[name]
        content.planner_data[copy] = ("copy", str(number))
        places = [(index, place) for index, place in content.storage_data.items() if index.fqn == name]
        content.storage_data |= {dataclasses.replace(index, fqn=copy): place for index, place in places}


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        pytest.param(lambda d: (d / "__1_0.distcp").unlink(), "lists the shard '__1_0.distcp', which is not in", id="lost"),
        pytest.param(lambda d: (d / "__1_0.distcp").write_bytes(b""), "is not within its shard __1_0.distcp", id="cut"),
        pytest.param(lambda d: edit(d, lambda said: said.storage_data.popitem()), "doesn't say where all of 'model.1.num_batches_tracked' is", id="gap"),
        pytest.param(lambda d: edit(d, again), "lists values that overlap", id="one place for all"),
        pytest.param(lambda d: (d / ".metadata").write_bytes((d / ".metadata").read_bytes()[:500]),
                     "is not the metadata of a distributed checkpoint", id="cut metadata"),
    ],
)  # fmt: skip
def test_a_damaged_distributed_checkpoint_is_named(tmp_path: Path, break_: Any, said: str) -> None:
    folder = split(tmp_path / "d")
    break_(folder)
    refused(tmp_path, folder, said)


# LoRA --------------------------------------------------------------------------------------


def adapter(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write what peft saves of a layer `0`, beside the base with the names of `weights`; return its tensors."""
    torch.manual_seed(5)
    tensors = {
        "base_model.model.0.lora_A.weight": torch.randn(2, 4),
        "base_model.model.0.lora_B.weight": torch.randn(3, 2),
    }
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
             "target_modules": ["0"], "base_model_name_or_path": "b", "init_lora_weights": True, "rank_pattern": {},
             "alpha_pattern": {}, "modules_to_save": None, "use_dora": False, "lora_dropout": 0.1}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(given | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir(exist_ok=True)
    save_file(weights(), tmp_path / "base/model.safetensors")
    return tmp_path / "base"


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3 / 2), (True, 3 / 2**0.5)])
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, rslora: bool, scale: float) -> None:
    """peft 0.21's merge_and_unload gave the same bits for BERT and GPT-2, with heads, in float32 and half types."""
    parts = list(adapter(tmp_path / "lora", use_rslora=rslora).values())
    made = take(tmp_path, tmp_path / "lora", base=base(tmp_path))
    merged = weights()["0.weight"] + parts[1] @ parts[0] * scale
    assert_weights(made, weights() | {"0.weight": merged}, format="adapter")


def test_an_adapters_trained_head_replaces_that_of_the_base(tmp_path: Path) -> None:
    tensors = adapter(tmp_path / "lora", modules_to_save=["1"])
    head = {"base_model.model.1.weight": torch.full((3,), 7.0)}
    save_file(tensors | head, tmp_path / "lora/adapter_model.safetensors")
    found = tensor_files.read(take(tmp_path, tmp_path / "lora", base=base(tmp_path))["weights"])
    assert found["1.weight"].tolist() == [7, 7, 7]


def test_an_adapter_of_a_bfloat16_embedding_is_rounded_as_peft_does(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    torch.manual_seed(5)
    a, b, table = torch.randn(2, 40), torch.randn(8, 2), torch.randn(40, 8).bfloat16()
    name = "base_model.model.words.lora_embedding_"
    save_file({f"{name}A": a, f"{name}B": b}, tmp_path / "lora/adapter_model.safetensors")
    save_file({"words.weight": table}, tmp_path / "base.safetensors")
    made = take(tmp_path, tmp_path / "lora", base=tmp_path / "base.safetensors")
    assert_weights(made, {"words.weight": table + ((b @ a).T * 1.5).bfloat16()})


def test_both_names_of_a_tied_weight_get_the_adapters_change(tmp_path: Path) -> None:
    tensors = adapter(tmp_path / "lora")
    tied = weights()
    tied["head.weight"] = tied["0.weight"]
    torch.save(tied, tmp_path / "base.pt")
    made = take(tmp_path, tmp_path / "lora", base=tmp_path / "base.pt")
    a, b = tensors.values()
    found = tensor_files.read(made["weights"])
    assert torch.equal(found["head.weight"], weights()["0.weight"] + b @ a * 1.5)
    assert json.loads(made["metadata"].read_text())["tied"] == {"head.weight": "0.weight"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "the adapter is of the type IA3, not LORA"),
        ({"use_dora": True}, "the adapter was trained with use_dora: true, which can't be merged here"),
        ({"bias": "all"}, 'with bias: "all"'), ({"lora_bias": True}, "with lora_bias: true"),
        ({"rank_pattern": {"0": 4}}, "with rank_pattern: "), ({"alpha_pattern": {"0": 4}}, "with alpha_pattern: "),
        ({"target_parameters": ["0.weight"]}, "with target_parameters: "),
        ({"layer_replication": [[0, 1]]}, "with layer_replication: "),
        ({"trainable_token_indices": [3]}, "with trainable_token_indices: "),
        ({"init_lora_weights": "pissa"}, 'with init_lora_weights: "pissa"'),
        ({"a_later_option": 1}, "with a_later_option: 1"),
        ({"r": "two"}, "is not the configuration of a LoRA adapter"), ({"r": 0}, "is not the configuration of a LoRA"),
        ({"r": 3}, "'0.lora_A.weight' doesn't have the rank 3"),
        ({"fan_in_fan_out": True}, "the base weights have no '0.weight' of the shape"),
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_that_can_not_be_merged_exactly_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    adapter(tmp_path / "lora", **settings)
    refused(tmp_path, tmp_path / "lora", said, base=base(tmp_path))


def test_an_adapter_and_its_base_belong_together(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    assert "base: …" in refused(tmp_path, tmp_path / "lora", "a LoRA adapter .peft.: it has only what").fix
    refused(tmp_path, base(tmp_path), "`base` is for a LoRA adapter", base=base(tmp_path))
    save_file({"encoder.0.weight": torch.ones(3, 4)}, tmp_path / "base/model.safetensors")
    refused(tmp_path, tmp_path / "lora", "the base weights have no '0.weight'", base=tmp_path / "base")
    (tmp_path / "lora/adapter_model.safetensors").unlink()
    refused(tmp_path, tmp_path / "lora", "the adapter's folder has no adapter_model", base=tmp_path / "base")
