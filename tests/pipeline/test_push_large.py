"""A push of 1 GB goes through in bounded memory, and reads the file once to hash and to send it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.local.servers import dry_run
from tests.conftest import ROOT

MIB = 1 << 20
STAGE, INPUT, PARAMS = "push.s3", "artifact", {"prefix": "models/large"}
TARGET = {"aws": {"region": "us-east-1", "bucket": "dry-run-models", "create_bucket": True}}

PUSH = """
import json, re, sys
from pathlib import Path

import boto3
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage

uses, folder, name, path, digest, params, target = sys.argv[1:]

def of(file, name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self", file).read_text())[1])

cls = Registry(Path.cwd()).get(uses).cls
run, found = cls.run, {}

def measured(self, *given):
    boto3.Session(region_name="us-east-1").client("s3")
    Path("/proc/self/clear_refs").write_text("5")  # Sets the peak of the memory to what it is now.
    base, read = of("status", "VmRSS"), of("io", "rchar")
    run(self, *given)
    found["memory"], found["read"] = (of("status", "VmHWM") - base) * 1024, of("io", "rchar") - read

cls.run = measured
made = run_stage(cls, Path(folder), inputs={name: Path(path)}, params=json.loads(params),
                 target=json.loads(target), digests={name: digest})
print(json.dumps(found | {"converged": made.context.converged, "figures": made.figures}))
"""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push took: the peak of its process above what its libraries hold, and what it read, in bytes."""

    memory: int
    read: int
    converged: bool
    figures: Mapping[str, Any]


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    with dry_run(tmp_path / "servers", services=("aws",), log=lambda line: None) as env:
        yield env


def artifact(path: Path, size: int) -> str:
    """Write a file of which no two parts are the same; return its SHA-256."""
    generator, digest = random.Random(0), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = generator.randbytes(MIB)
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def push(folder: Path, path: Path, digest: str, aws: Mapping[str, str]) -> Pushed:
    """Push a file whose digest is known, as the runner knows that of every input, in a process of its own."""
    arguments = [STAGE, str(folder), INPUT, str(path), digest, json.dumps(PARAMS), json.dumps(TARGET)]
    done = subprocess.run([sys.executable, "-c", PUSH, *arguments], cwd=ROOT, env=os.environ | aws,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    pushed = Pushed(**json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{path.stat().st_size / MIB:.0f} MiB: {pushed.memory / MIB:.0f} MiB, read {pushed.read / MIB:.1f} MiB"
    )
    return pushed


@pytest.mark.parametrize(
    "size",
    [pytest.param(64 * MIB, id="64 MiB"), pytest.param(1024 * MIB, id="1 GiB", marks=pytest.mark.slow)],
)
def test_a_push_streams_and_reads_the_file_once(
    size: int, tmp_path: Path, aws: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    path = tmp_path / "weights.bin"
    digest = artifact(path, size)
    first = push(tmp_path / "first", path, digest, aws)
    assert first.memory < 200 * MIB
    assert size <= first.read < size + 8 * MIB
    for name, value in aws.items():
        monkeypatch.setenv(name, value)
    bucket, _, prefix = first.figures["uri"].removeprefix("s3://").partition("/")
    head = boto3.client("s3", region_name="us-east-1").head_object(Bucket=bucket, Key=f"{prefix}/weights.bin")
    assert head["ContentLength"] == size
    assert head["Metadata"]["sha256"] == digest
    again = push(tmp_path / "again", path, digest, aws)
    assert again.converged
    assert again.memory < 200 * MIB
    assert again.read < size + 8 * MIB
