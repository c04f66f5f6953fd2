"""The models of tests/models/axes.py: what their authors would write about them, and their bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import ROOT, module_of

MODELS = ROOT / "tests" / "models"
EXAMPLES: dict[str, dict[str, Any]] = {
    "speech": {
        "example": {"frames": {"shape": [7, 3, 6]}, "state": {"shape": [2, 3, 8]}},
        "dynamic": {"frames": {0: "time", 1: "batch"}, "state": {1: "batch"}},
    },
    "sampler": {
        "example": {"x": {"shape": [2, 4]}, "temperature": {"shape": []}},
        "dynamic": {"x": {0: "batch"}},
    },
    "segmenter": {
        "example": {"picture": {"shape": [1, 3, 64, 96]}},
        "dynamic": {
            "picture": {
                0: "batch",
                2: {"name": "height", "multiple_of": 32, "min": 32, "max": 128},
                3: {"name": "width", "multiple_of": 32, "min": 32, "max": 128},
            }
        },
    },
    "matcher": {
        "example": {"query": {"shape": [2, 4]}, "gallery": {"shape": [9, 4]}},
        "dynamic": {"query": {0: "batch"}, "gallery": {0: "items"}},
    },
    "reader": {
        "example": {"tokens": {"shape": [6, 2], "dtype": "int64", "high": 20}, "mask": {"shape": [6, 6]}},
        "dynamic": {"tokens": {0: "length", 1: "batch"}, "mask": {0: "length", 1: "length"}},
    },
    "last": {"example": {"x": {"shape": [5, 4, 3]}}, "dynamic": {"x": {0: "steps", 2: "batch"}}},
    "pooled": {"example": {"x": {"shape": [6, 4]}}, "dynamic": {"x": {0: "time"}}},
    "wave": {"example": {"signal": {"shape": [16, 4]}}, "dynamic": {"signal": {0: "time"}}},
    "mirrored": {"example": {"signal": {"shape": [6, 4]}}, "dynamic": {"signal": {0: "time"}}},
    "camera": {
        "example": {"picture": {"shape": [1, 32, 32, 3], "dtype": "uint8", "high": 256}},
        "dynamic": {"picture": {0: "batch", 1: {"name": "height", "min": 5}, 2: {"name": "width", "min": 5}}},
    },
    "graph": {
        "example": {"nodes": {"shape": [6, 4]}, "edges": {"shape": [2, 9], "dtype": "int64", "high": 6}},
        "dynamic": {"nodes": {0: "nodes"}, "edges": {1: "edges"}},
    },
}


def prepared(
    name: str, folder: Path, samples: Path | None = None, dynamic: dict[str, Any] | None = None
) -> Path:
    """Return the bundle of one of the models of tests/models/axes.py, with its axes or those given."""
    torch.manual_seed(0)
    torch.save(getattr(module_of(MODELS / "axes.py"), name)().state_dict(), folder / "c.pt")
    weights = run_stage(stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": folder / "c.pt"})[
        "weights"
    ]
    params = {"factory": f"axes.py:{name}", **EXAMPLES[name]} | ({"dynamic": dynamic} if dynamic else {})
    return run_stage(
        stage("model.prepare"),
        folder / "b",
        project=MODELS,
        inputs={"weights": weights, "samples": samples},
        params=params,
    )["model"]


def exported(bundle: Path, folder: Path) -> Path:
    """Return the ONNX artifact of a bundle."""
    return run_stage(stage("onnx.export"), folder / "o", inputs={"model": bundle})["model"]
