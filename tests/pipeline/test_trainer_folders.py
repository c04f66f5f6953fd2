"""Folders as trainers leave them: which file has the weights, and what else is never read."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.pipeline.taking import assert_weights, refused, take, weights

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
