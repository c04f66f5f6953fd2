"""Shared caches for tests: a bucket on a real S3 server of loopback, and a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from deploy_runner.local.servers import dry_run
from tests.conftest import Project

__all__ = ["SECRET", "Bucket", "Share", "Shared", "machine", "objects", "s3_server"]

SECRET = "the secret by which records of these tests are signed"


class Shared(Protocol):
    """A shared cache whose objects a test looks at, and changes behind everybody's back."""

    env: dict[str, str]
    """What the command line needs to write there."""

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects below a folder, in order."""

    def read(self, name: str) -> bytes:
        """Return the content of an object."""

    def write(self, name: str, data: bytes) -> None:
        """Put an object there."""

    def remove(self, name: str) -> None:
        """Take an object away, as a lifecycle rule does."""


def machine(project: Project, shared: Shared, name: str) -> dict[str, str]:
    """Return the environment of another machine: the same project, and a store of its own."""
    return {**shared.env, "DEPLOY_RUNNER_HOME": str(project.folder.parent / name)}


def objects(env: Mapping[str, str]) -> list[Path]:
    """Return the object files of a machine's store."""
    return [path for path in (Path(env["DEPLOY_RUNNER_HOME"]) / "cas").rglob("*") if path.is_file()]


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Start an S3; yield the environment that leads there."""
    with dry_run(folder, services=("aws",), log=lambda line: None) as env:
        yield {**env, "AWS_REGION": "us-east-1"}


class Bucket:
    """A new bucket of a server, with a prefix in it."""

    def __init__(self, server: Mapping[str, str], name: str, prefix: str) -> None:
        import boto3

        self._name, self._prefix = name, f"{prefix}/" if prefix else ""
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=server["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self._client.create_bucket(Bucket=name)
        self.url = f"s3://{name}/{prefix}"
        self.env = {
            **server,
            "DEPLOY_RUNNER_REMOTE": self.url,
            "DEPLOY_RUNNER_CACHE_KEY": SECRET,
        }

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects below a folder, in order."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._name, Prefix=self._prefix + folder
        )
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        return sorted(unquote(key).removeprefix(self._prefix) for key in keys)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        found: bytes = self._client.get_object(Bucket=self._name, Key=self._prefix + name)["Body"].read()
        return found

    def write(self, name: str, data: bytes) -> None:
        """Put an object there."""
        self._client.put_object(Bucket=self._name, Key=self._prefix + name, Body=data)

    def remove(self, name: str) -> None:
        """Take an object away, as a lifecycle rule does."""
        self._client.delete_object(Bucket=self._name, Key=self._prefix + name)


class Share:
    """A folder that several machines mount."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.url = f"file://{folder}"
        self.env = {"DEPLOY_RUNNER_REMOTE": self.url, "DEPLOY_RUNNER_CACHE_KEY": SECRET}

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects below a folder, in order."""
        files = (path for path in (self.folder / folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Put an object there."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)

    def remove(self, name: str) -> None:
        """Take an object away."""
        (self.folder / name).unlink()

    def age(self, name: str, days: float) -> None:
        """Have an object look as if it had been written days ago."""
        path = self.folder / name
        then_s = path.stat().st_mtime - days * 86400
        os.utime(path, (then_s, then_s))
