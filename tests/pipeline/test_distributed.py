"""What torch.distributed.checkpoint writes, from one process or several, is read without its pickles."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from tests.pipeline.taking import assert_weights, refused, take, trained, weights


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


def twice(content: Any) -> None:
    """Say that the last row of a tensor is its second, which the first shard has, too."""
    name, rows = "model.0.weight", content.state_dict_metadata["model.0.weight"]
    rows.chunks[1] = dataclasses.replace(rows.chunks[1], offsets=torch.Size([1, 0]))
    content.storage_data = {
        dataclasses.replace(index, offset=torch.Size([1, 0]))
        if (index.fqn, index.index) == (name, 1)
        else index: place
        for index, place in content.storage_data.items()
    }


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        pytest.param(lambda d: (d / "__1_0.distcp").unlink(), "lists the shard '__1_0.distcp', which is not in", id="lost"),
        pytest.param(lambda d: (d / "__1_0.distcp").write_bytes(b""), "is not within its shard __1_0.distcp", id="cut"),
        pytest.param(lambda d: edit(d, lambda said: said.storage_data.popitem()), "doesn't say where all of 'model.1.num_batches_tracked' is", id="gap"),
        pytest.param(lambda d: edit(d, twice), "says twice where a part of 'model.0.weight' is", id="a row twice"),
        pytest.param(lambda d: edit(d, again), "lists values that overlap", id="one place for all"),
        pytest.param(lambda d: (d / ".metadata").write_bytes((d / ".metadata").read_bytes()[:500]),
                     "is not the metadata of a distributed checkpoint", id="cut metadata"),
    ],
)  # fmt: skip
def test_a_damaged_distributed_checkpoint_is_named(tmp_path: Path, break_: Any, said: str) -> None:
    folder = split(tmp_path / "d")
    break_(folder)
    refused(tmp_path, folder, said)
