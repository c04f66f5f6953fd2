"""Pushes to a registry, and the reference registry: Debian's docker-registry, unpacked but not installed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.ports import answers, free, started

__all__ = ["PASSWORD", "USER", "calls", "folder_of", "push", "reference", "unpack"]

USER, PASSWORD = "me", "correct horse"
_HASHED = "$2b$04$.BKsWOkGvWhZDEDPf5mCxOe8c22wVsW2PSc50j6nFaZbYLZKHxAIu"


def unpack(folder: Path) -> Path:
    """Download the package and unpack it; return the program."""
    folder.mkdir()
    subprocess.run(["apt-get", "download", "docker-registry"], cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("docker-registry_*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    return folder / "usr/bin/docker-registry"


@contextmanager
def reference(program: Path, folder: Path, *, password: bool = False) -> Iterator[str]:
    """Run the registry; yield its HOST:PORT. With `password` only USER may use it."""
    (port,) = free(1)
    folder.mkdir()
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x" * 16},
        "health": {"storagedriver": {"enabled": False}},
    }
    if password:
        (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    command = [program, "serve", folder / "config.yml"]
    with started(command, folder / "log", ready=lambda: answers(f"http://127.0.0.1:{port}/")):
        yield f"127.0.0.1:{port}"


def push(folder: Path, host: str, artifact: Path, **params: Any) -> StageRun:
    run = folder / f"run{len(list(folder.iterdir()))}"
    return run_stage(
        stage("push.oci"), run, inputs={"artifact": artifact},
        params={"repository": "models/digits", **params}, target={"oci": {"registry": host}},
    )  # fmt: skip


def folder_of(tmp_path: Path, text: str) -> Path:
    made = tmp_path / f"artifact-{text}"
    (made / "io").mkdir(parents=True)
    (made / "model.onnx").write_text(text)
    (made / "io" / "io.json").write_text("{}")
    (made / "README.md").write_text("# Digits")
    return made


def calls(run: StageRun) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run["transcript"].read_text())["calls"]
    return found
