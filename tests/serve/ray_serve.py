"""A package behind the real Ray Serve, started as SageMaker's Ray image does.

The image's entrypoint: https://github.com/aws/deep-learning-containers/blob/main/scripts/docker/ray/sagemaker_entrypoint.sh
Ray and what the models need come from this environment; what `ray[serve]` needs beside them (58 MB) is
installed by pip into a virtual environment of its own, in which deploy_runner can't be imported.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import wait_until

__all__ = ["RayServe", "interpreter", "ray_serve"]

_STARTED_S = 300
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONDONTWRITEBYTECODE": "1"}


class RayServe:
    """A running Serve; `place` is its address."""

    def __init__(self, place: str, run: subprocess.Popen[bytes], log: Path) -> None:
        self.place, self._run, self._log = place, run, log

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
        try:
            with urllib.request.urlopen(f"{self.place}/-/healthz", timeout=_STARTED_S) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    @property
    def log(self) -> str:
        """Return what `serve run` has written."""
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, text: str) -> None:
        """Wait until `serve run` has written a text."""
        wait_until(lambda: text in self.log, limit_s=_STARTED_S)

    def wait(self) -> None:
        """Wait until it is healthy."""
        wait_until(lambda: self.healthy() or self._run.poll() is not None, limit_s=_STARTED_S)
        assert self._run.poll() is None, self.log


def interpreter(folder: Path) -> Path:
    """Make the virtual environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "these.pth").write_text(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
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
    model = config.parent
    ports = [_free(), _free()]
    sockets = tempfile.mkdtemp(prefix="ray")  # Their paths have to be short.
    settings = {
        **os.environ, **_SETTINGS, "PYTHONPATH": f"{model}:{model}/code",
        "RAY_ADDRESS": f"127.0.0.1:{ports[0]}",
    }  # fmt: skip
    ray, serve = ([python, "-m", name] for name in ("ray.scripts.scripts", "ray.serve.scripts"))
    log = folder / "serve.log"
    with log.open("wb") as out:

        def start(*command: object, address: bool = True) -> subprocess.Popen[bytes]:
            used = settings if address else {k: v for k, v in settings.items() if k != "RAY_ADDRESS"}
            return subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=used,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

        node = start(
            *ray, "start", "--head", "--block", f"--port={ports[0]}", "--node-ip-address=127.0.0.1", "--num-cpus=8",
            "--include-dashboard=False", f"--temp-dir={sockets}", address=False,
        )  # fmt: skip
        run = None
        try:
            wait_until(lambda: b"ray stop" in log.read_bytes() or node.poll() is not None, limit_s=_STARTED_S)
            assert node.poll() is None, log.read_text()
            served = start(*serve, "start", "--http-host=127.0.0.1", f"--http-port={ports[1]}")
            assert served.wait(_STARTED_S) == 0, log.read_text()
            run = start(*serve, "run", config)
            yield RayServe(f"http://127.0.0.1:{ports[1]}", run, log)
        finally:
            for process in filter(None, (run, node)):
                process.send_signal(signal.SIGTERM)
                process.wait(_STARTED_S)
            shutil.rmtree(sockets, ignore_errors=True)


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
