"""The servers that are compared: how to install and start each.

All serve the digits CNN at `POST /predict`, take the same bytes, compute on one thread
(`OMP_NUM_THREADS=1`, which ONNX Runtime's sessions and torch are told too), write no access log and
get the best settings that were found for them on two cores; docs/speed.md says which were tried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .environments import HERE, environment

__all__ = ["CONSTANT", "CONTENDERS", "OURS", "Contender"]

SERVERS = HERE / "servers"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server: its packages, the format of model that it takes, and its command line.

    `command` is given the folder of its programs, the model, and a port of 127.0.0.1.
    """

    name: str
    packages: tuple[str, ...]
    format: Literal["onnx", "torchscript"]
    command: Callable[[Path, Path, int], list[str]]
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, model: Path, port: int) -> list[str]:
        """Return the command that serves a model, making the environment if there is none."""
        programs = environment(self.name, self.packages) if self.packages else Path(sys.executable).parent
        return self.command(programs, model, port)


def _ours(programs: Path, model: Path, port: int) -> list[str]:
    return [str(programs / "deploy-runner"), "serve", str(model), "--port", str(port)]


def _naive(programs: Path, model: Path, port: int) -> list[str]:
    return [str(programs / "uvicorn"), "naive:app", "--port", str(port), "--no-access-log"]


def _litserve(programs: Path, model: Path, port: int) -> list[str]:
    return [str(programs / "python"), "litserve_api.py", str(port)]


def _bentoml(programs: Path, model: Path, port: int) -> list[str]:
    return [str(programs / "bentoml"), "serve", "bentoml_service:Digits",
            "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip


def _constant(programs: Path, model: Path, port: int) -> list[str]:
    return [str(programs / "uvicorn"), "constant:app", "--port", str(port), "--no-access-log",
            "--lifespan", "off"]  # fmt: skip


_ONNX = ("onnxruntime==1.32.0", "numpy==2.4.6")
OURS = Contender("ours", (), "onnx", _ours)
CONSTANT = Contender("constant", (), "onnx", _constant)
"""No contender, but what a request costs at least: ours is compared with it by CPU."""
CONTENDERS = (
    OURS,
    CONSTANT,
    Contender(
        "naive",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "torch==2.13.0", "numpy==2.4.6"),
        "torchscript",
        _naive,
    ),
    Contender("litserve", ("litserve==0.2.19", *_ONNX), "onnx", _litserve),
    Contender("bentoml", ("bentoml==1.4.40", *_ONNX), "onnx", _bentoml, {"BENTOML_DO_NOT_TRACK": "True"}),
)
