"""A package behind the real Ray Serve, started as SageMaker's Ray image does.

The image's entrypoint: https://github.com/aws/deep-learning-containers/blob/main/scripts/docker/ray/sagemaker_entrypoint.sh
Ray and what the models need come from this environment; what `ray[serve]` needs beside them (58 MB) is
installed by pip into a virtual environment of its own, in which deploy_runner can't be imported.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import yaml

from tests.waiting import wait_until

__all__ = ["RayServe", "interpreter", "ray_serve"]

_STARTED_S = 300
_NODE_S, _TRIES = 90, 3
_NODE = f"""
import time
from ray._private import services, utils
from ray.scripts.scripts import main

def get_node(*given, once=services.get_node, ends=time.monotonic() + {_NODE_S}):
    while True:
        try:
            return once(*given)
        except RuntimeError:
            if time.monotonic() > ends:
                raise

services.get_node = get_node
utils.get_dashboard_dependency_error = lambda: "not wanted"
main()
"""
"""`ray start` with the small kind of agents, for which Ray waits 15 s, and the time that the node needs: by
itself Ray gives it 30 s, as no variable changes, and on a machine with a load of 15 it took up to 70. One that isn't up by then never is, so it is tried again."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONDONTWRITEBYTECODE": "1",
    "RAY_prestart_worker_first_driver": "0", "RAY_agent_register_timeout_ms": "300000",
}  # fmt: skip


class RayServe:
    """A running Serve of applications at `routes`; `place` is its address."""

    def __init__(self, place: str, run: subprocess.Popen[bytes], log: Path, routes: Collection[str]) -> None:
        self.place, self._run, self._log, self._routes = place, run, log, set(routes)

    def ask(
        self, body: bytes, kind: str, accept: str = "application/json", *, route: str = "/"
    ) -> tuple[int, bytes, str]:
        """Send what the image's adapter sends; return the status, the body and its type."""
        headers = {"Content-Type": kind, "Accept": accept}
        request = urllib.request.Request(self.place + route, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=_STARTED_S) as answer:
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers["Content-Type"]

    def healthy(self) -> bool:
        """Return what the image's /ping says."""
        return self._told("healthz") is not None

    def _told(self, what: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"{self.place}/-/{what}", timeout=_STARTED_S) as answer:
                return bytes(answer.read())
        except urllib.error.URLError:
            return None

    def _serves_all(self) -> bool:
        """Say whether it has every route. It is healthy with the first, and / answers for those to come."""
        return self._routes <= set(json.loads(self._told("routes") or b"{}"))

    @property
    def log(self) -> str:
        """Return what `serve run` has written."""
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, text: str) -> None:
        """Wait until `serve run` has written a text."""
        wait_until(lambda: text in self.log, limit_s=_STARTED_S)

    def wait(self) -> None:
        """Wait until it is healthy, with every route."""
        wait_until(lambda: self._serves_all() or self._run.poll() is not None, limit_s=_STARTED_S)
        assert self._run.poll() is None, self.log


def interpreter(folder: Path) -> Path:
    """Make the virtual environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "these.pth").write_text(sysconfig.get_path("purelib"))
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, f"ray[serve]=={version('ray')}"], check=True, capture_output=True)
    return python


def _unpacked(packages: Mapping[str, Path], folder: Path) -> Path:
    """Unpack packages; return the first one's config.yaml, to which those of other routes were added.

    In the image there is one. Here each other one has its folder in its own environment instead of the node's.
    """
    applications: list[dict[str, Any]] = []
    for place, (route, package) in enumerate(packages.items()):
        model = folder / str(place)
        with tarfile.open(package) as archive:
            archive.extractall(model, filter="data")
        (found,) = yaml.safe_load((model / "config.yaml").read_text())["applications"]
        paths = {"env_vars": {"PYTHONPATH": f"{model}:{model}/code"}}
        moved = {"name": f"app-{place}", "route_prefix": route, "runtime_env": paths} if place else {}
        applications.append(found | moved)
    if applications[1:]:
        (folder / "0/config.yaml").write_text(yaml.safe_dump({"applications": applications}))
    return folder / "0/config.yaml"


@contextmanager
def ray_serve(python: Path, packages: Mapping[str, Path], folder: Path) -> Iterator[RayServe]:
    """Start what the image starts: a node, Serve, and a package's config.yaml, that of / first."""
    config = _unpacked(packages, folder)
    model, log = config.parent, folder / "serve.log"
    serve = [str(python), "-m", "ray.serve.scripts"]
    with ExitStack() as stack:
        out = stack.enter_context(log.open("wb"))
        env = {**os.environ, **_SETTINGS, "PYTHONPATH": f"{model}:{model}/code"}
        port = _node(stack, str(python), env, out, log)
        env["RAY_ADDRESS"], place = f"127.0.0.1:{port}", _free()
        started = [*serve, "start", "--http-host=127.0.0.1", f"--http-port={place}"]
        subprocess.run(started, cwd=folder, env=env, stdout=out, stderr=out, check=True, timeout=_STARTED_S)
        run = stack.enter_context(_process([*serve, "run", str(config)], env, out))
        yield RayServe(f"http://127.0.0.1:{place}", run, log, packages)


def _node(stack: ExitStack, python: str, env: Mapping[str, str], out: IO[bytes], log: Path) -> int:
    """Start a node, which ends with the stack; return its port."""
    for left in reversed(range(_TRIES)):
        # The paths of its sockets have to be short.
        sockets, port, before = tempfile.mkdtemp(prefix="ray"), _free(), log.stat().st_size
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        command = [
            python, "-c", _NODE, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
            "--num-cpus=8", "--include-dashboard=False", f"--temp-dir={sockets}",
        ]  # fmt: skip
        node = stack.enter_context(_process(command, env, out))
        is_up = partial(_says, log, before)
        wait_until(lambda: is_up() or node.poll() is not None, limit_s=_STARTED_S)  # noqa: B023
        if node.poll() is None:
            return port
        assert left, log.read_text()
    raise AssertionError


def _says(log: Path, before: int) -> bool:
    return b"ray stop" in log.read_bytes()[before:]


@contextmanager
def _process(command: list[str], env: Mapping[str, str], out: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_STARTED_S)


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
