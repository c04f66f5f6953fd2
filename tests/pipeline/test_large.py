"""Weights of 1 GB and of more than 2 GB go through in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch.distributed.checkpoint.format_utils import torch_save_to_dcp

from deploy_runner.sdk import sha256_file
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

LAYER_BYTES = 8192 * 8192 * 4

BIG = """
from torch import nn

def build(layers):
    return nn.Sequential(*[nn.Linear(8192, 8192, bias=False) for _ in range(layers)])
"""

MAKE = """
import sys, torch
generator = torch.Generator().manual_seed(0)
weights = {f"{i}.weight": torch.randn(8192, 8192, generator=generator) * 0.01 for i in range(int(sys.argv[2]))}
torch.save({"epoch": 1, "model_state_dict": weights}, sys.argv[1])
"""

STAGE = """
import json, re, sys, threading
from pathlib import Path
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage
import torch

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

uses, folder, inputs, params = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
base, peak, done = memory("RssAnon"), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, memory("RssAnon"))

watcher = threading.Thread(target=watch)
watcher.start()
cls = Registry(Path.cwd()).get(uses).cls
made = run_stage(cls, folder, inputs={k: Path(v) for k, v in inputs.items()}, params=params, project=folder.parent)
done.set()
watcher.join()
print(json.dumps({"anonymous": peak - base, "resident": memory("VmHWM"), "figures": made.figures}))
"""


def run(folder: Path, uses: str, inputs: dict[str, Path], **params: Any) -> dict[str, Any]:
    """Run a stage in a process of its own; return its figures and the peaks of its memory in bytes."""
    arguments = [uses, str(folder), json.dumps({k: str(v) for k, v in inputs.items()}), json.dumps(params)]
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(uses, {k: f"{found[k] / 1e9:.2f} GB" for k in ("anonymous", "resident")})
    return found


def checkpoint(folder: Path, layers: int) -> Path:
    (folder / "big.py").write_text(BIG)
    subprocess.run([sys.executable, "-c", MAKE, str(folder / "c.pt"), str(layers)], check=True)
    return folder / "c.pt"


def test_a_checkpoint_of_1_gb_is_not_copied_in_memory(tmp_path: Path) -> None:
    taken = run(tmp_path / "w", "checkpoint.state_dict", {"checkpoint": checkpoint(tmp_path, 4)})
    assert taken["anonymous"] < 0.1e9
    assert taken["resident"] < 1.2e9, "with torch itself, and every mapped page"


def test_what_is_put_together_is_not_in_memory_either(tmp_path: Path) -> None:
    """A checkpoint that was packed again, and one in shards: each weight is 268 MB, and in memory once."""
    saved = checkpoint(tmp_path, 2)
    with (
        zipfile.ZipFile(saved) as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for member in old.infolist():
            with old.open(member) as source, new.open(member.filename, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    packed = run(tmp_path / "w", "checkpoint.state_dict", {"checkpoint": tmp_path / "z.pt"})
    assert packed["anonymous"] < 0.1e9
    torch_save_to_dcp(saved, tmp_path / "d")
    sharded = run(tmp_path / "d2", "checkpoint.state_dict", {"checkpoint": tmp_path / "d"})
    assert sharded["anonymous"] < 2.3 * LAYER_BYTES
    one, two = (tmp_path / name / "outputs/weights.safetensors" for name in ("w", "d2"))
    assert sha256_file(one) == sha256_file(two)


def test_a_model_over_2_gb_is_exported_within_1_3_times_its_weights(tmp_path: Path) -> None:
    total = 9 * LAYER_BYTES
    assert total > 2**31
    taken = run(tmp_path / "w", "checkpoint.state_dict", {"checkpoint": checkpoint(tmp_path, 9)})
    (tmp_path / "c.pt").unlink()
    assert taken["resident"] < 1.3 * total
    weights = {"weights": tmp_path / "w/outputs/weights.safetensors"}
    example = {"shape": [1, 8192]}
    prepared = run(
        tmp_path / "b",
        "model.prepare",
        weights,
        factory="big.py:build",
        kwargs={"layers": 9},
        example=example,
    )
    assert prepared["resident"] < 1.3 * total
    exported = run(tmp_path / "x", "onnx.export", {"model": tmp_path / "b/outputs/model"})
    assert exported["resident"] < 1.3 * total
    made = tmp_path / "x/outputs/model"
    assert sorted(p.name for p in made.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (made / "model.onnx.data").stat().st_size >= total
    graph = onnx.load(made / "model.onnx", load_external_data=False).graph
    assert sum(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer) == 9
    run(tmp_path / "k", "onnx.check", {"model": made})
