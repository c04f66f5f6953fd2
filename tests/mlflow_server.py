"""A real server of MLflow, in an environment of its own: its whole package is 342 MB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import venvs
from tests.ports import answers, free, started

__all__ = ["interpreter", "running"]


def interpreter(folder: Path) -> Path:
    """Make the environment; return its Python."""
    return venvs.made(folder, "mlflow>=3.17,<4", "onnx", "onnxruntime")


@contextmanager
def running(python: Path, folder: Path) -> Iterator[str]:
    """Run a server whose database and artifacts lie in a folder; yield its address."""
    (port,) = free(1)
    folder.mkdir()
    command = [
        python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", folder / "artifacts",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with started(command, folder / "log", ready=lambda: answers(f"{url}/health"), env=env, limit_s=400):
        yield url
