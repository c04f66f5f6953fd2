"""One model gives one tar.gz: in two folders, umasks, time zones, clocks, hash seeds, and for two users."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PROGRAM = """
import hashlib, json, os, sys, time
from pathlib import Path
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage

model, reference, made = map(Path, sys.argv[1:4])
os.umask(int(sys.argv[4], 8))
stage = Registry(Path.cwd()).get("package.sagemaker").cls
package = run_stage(stage, made, inputs={"model": model, "reference": reference})["package"]
seen = {"year": time.localtime().tm_year, "zone": time.tzname[0], "user": os.getuid(), "hash": hash("x")}
mode = oct(package.stat().st_mode & 0o777)
print(json.dumps({"digest": hashlib.sha256(package.read_bytes()).hexdigest(), "mode": mode, **seen}))
"""


def faketime() -> str:
    """Return the library that moves the clock of a process."""
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1")


def packed(
    model: Path, reference: Path, made: Path, *before: str, umask: str = "022", **env: str
) -> dict[str, Any]:
    """Pack the model in a process of its own; return the digest, and what that process saw of its world."""
    made.parent.mkdir(parents=True, exist_ok=True)
    command = [*before, sys.executable, "-c", PROGRAM, *map(str, (model, reference, made)), umask]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def first(fp32: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The package, made as usual."""
    return packed(fp32, bundle, tmp_path_factory.mktemp("first") / "made", PYTHONHASHSEED="1", TZ="UTC")


def test_another_folder_umask_time_zone_and_hash_seed(
    first: dict[str, Any], fp32: Path, bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "another folder" / "made"
    second = packed(fp32, bundle, place, umask="077", TZ="Asia/Tokyo", PYTHONHASHSEED="2")
    assert second["digest"] == first["digest"]
    assert second["zone"] == "JST" != first["zone"]
    assert second["hash"] != first["hash"]


@pytest.mark.parametrize("clock", ["2001-02-03 04:05:06", "2037-12-31 23:59:59"])
def test_another_clock(first: dict[str, Any], fp32: Path, bundle: Path, tmp_path: Path, clock: str) -> None:
    env = {"LD_PRELOAD": faketime(), "FAKETIME": clock, "DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}
    second = packed(fp32, bundle, tmp_path / "made", **env)
    assert second["year"] == int(clock[:4]) != first["year"]
    assert second["digest"] == first["digest"]


def test_another_user(first: dict[str, Any], fp32: Path, bundle: Path, tmp_path: Path) -> None:
    become = ("unshare", "--user", "--map-user=4321", "--map-group=4321")
    if subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are forbidden here")
    second = packed(fp32, bundle, tmp_path / "made", *become)
    assert second["user"] == 4321 != first["user"]
    assert second["digest"] == first["digest"]
