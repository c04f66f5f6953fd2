"""Machines that share a cache: project folders with one remote, a folder or an S3 behind the fault proxy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.store import S3Store

from deploy_runner.store.signatures import Signatures
from tests.conftest import TEXT_STAGES, Project
from tests.faults.proxy import Fault, FaultProxy, Request

__all__ = [
    "CHAIN",
    "SECRET",
    "Bucket",
    "Machines",
    "Share",
    "machine",
    "objects",
    "public_key",
    "quickly_in_s3",
]

SECRET = "a secret of more than 32 characters"
CHAIN = """
a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
b: {uses: text.join, inputs: {texts: {a: "${{ stages.a.outputs.text }}"}}}
c: {uses: run.command, inputs: {d: "${{ stages.b.outputs.folder }}", t: "${{ stages.b.outputs.text }}"},
    outputs: {o: o}, with: {command: "cat $INPUT_D/sub/a.txt $INPUT_D/b.txt $INPUT_T > $OUTPUT_O"}}
"""
"""Files and a folder, Python and a command, each stage with the one before it as its input."""

quickly_in_s3 = pytest.mark.parametrize(
    "remote", [pytest.param("folder", marks=pytest.mark.slow), "s3"], indirect=True
)
"""What takes long is tried with both kinds of shared cache, but the fast suite tries it with S3 alone."""


def public_key(secret: str = SECRET) -> str:
    """Return the public key of a secret."""
    return Signatures([], {"DEPLOY_RUNNER_CACHE_KEY": secret}).public_key


def machine(project: Project, remote: Share, name: str) -> dict[str, str]:
    """Return the environment of a machine that has a project in common with others, and its own store."""
    home = project.folder.parent / name
    return {
        **remote.env, "DEPLOY_RUNNER_REMOTE": remote.url, "DEPLOY_RUNNER_CACHE_KEY": SECRET,
        "DEPLOY_RUNNER_HOME": str(home),
    }  # fmt: skip


def objects(env: Mapping[str, str]) -> list[Path]:
    """Return the object files of such a machine's store."""
    return [path for path in (Path(env["DEPLOY_RUNNER_HOME"]) / "cas").rglob("*") if path.is_file()]


class Share:
    """A remote in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.url = f"file://{folder}"
        self.env: Mapping[str, str] = {}

    def names(self, under: str = "") -> list[str]:
        """Return the names of all objects below a folder, or that of one object."""
        files = (p for p in (self.folder / "v1").rglob("*") if p.is_file())
        names = (p.relative_to(self.folder / "v1").as_posix() for p in files)
        return sorted(name for name in names if name.startswith(under))

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        return (self.folder / "v1" / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        path = self.folder / "v1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def remove(self, under: str) -> None:
        """Remove all objects below a folder, as a lifecycle rule does."""
        for name in self.names(under):
            (self.folder / "v1" / name).unlink()

    def age(self, name: str, days: float) -> None:
        """Have an object look as if it had been written days ago."""
        path = self.folder / "v1" / name
        then_s = path.stat().st_mtime - days * 86400
        os.utime(path, (then_s, then_s))


class Bucket(Share):
    """A remote in a bucket of a local S3, reached through `proxy`."""

    def __init__(
        self, server: Mapping[str, str], name: str, proxy: FaultProxy, *, prefix: str = "team"
    ) -> None:
        self.proxy = proxy
        self.bucket = name
        self.prefix = prefix
        self.url = f"s3://{name}/{prefix}"
        self.env = {**server, "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1"}
        client = S3Store(
            name, endpoint=server["AWS_ENDPOINT_URL"], region="us-east-1", client_options={"allow_http": True},
            access_key_id="a", secret_access_key="b",
        )  # fmt: skip
        self._direct = client  # What the test asks is not counted.
        connection = HTTPConnection(urlsplit(server["AWS_ENDPOINT_URL"]).netloc, timeout=30)
        with closing(connection):
            connection.request("PUT", f"/{name}")
            assert connection.getresponse().status == 200

    def names(self, under: str = "") -> list[str]:
        """Return the names of all objects below a folder."""
        found = obstore.list(self._direct, f"{self.prefix}/v1").collect()
        names = (meta["path"].removeprefix(f"{self.prefix}/v1/") for meta in found)
        return sorted(name for name in names if name.startswith(under))

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        return bytes(obstore.get(self._direct, f"{self.prefix}/v1/{name}").bytes())

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        obstore.put(self._direct, f"{self.prefix}/v1/{name}", data, use_multipart=False)

    def remove(self, under: str) -> None:
        """Remove all objects below a folder, as a lifecycle rule does."""
        for name in self.names(under):
            obstore.delete(self._direct, f"{self.prefix}/v1/{name}")

    def asked(self, method: str = "", under: str = "") -> list[Request]:
        """Return the requests that came so far, of a method and below a folder."""
        return [
            r for r in self.proxy.requests
            if method in ("", r.method) and r.path.startswith(f"/{self.bucket}/{self.prefix}/v1/{under}")
        ]  # fmt: skip

    def disturb(self, *faults: Fault) -> None:
        """Begin to count requests again, with these faults and no others."""
        self.proxy.disturb(faults)


class Machines:
    """Makes the machines of one test: each a project in a folder of its own."""

    def __init__(self, folder: Path, remote: Share) -> None:
        self.remote = remote
        self._folder = folder

    def machine(
        self, name: str, stages: str = CHAIN, *, push: bool = True, secret: str = SECRET, keys: Sequence[str] = (),
        required: bool = False, timeout: str = "2s",
    ) -> Project:  # fmt: skip
        """Return a machine; one without a secret trusts the public `keys` alone."""
        project = Project(self._folder / name)
        project.write("stages/texts.py", TEXT_STAGES)
        project.write("in.txt", "hello")
        said = [f"remote: '{self.remote.url}'", f"push: {str(push).lower()}", f"timeout: {timeout}"]
        said += [f"public_keys: [{', '.join(keys)}]"] if keys else []
        said += ["required: true"] if required else []
        project.pipeline(stages, head=f"cache: {{{', '.join(said)}}}\n")
        project.env |= dict(self.remote.env)
        if secret:
            project.env["DEPLOY_RUNNER_CACHE_KEY"] = secret
        return project
