"""What serves an endpoint of the local AWS: a container, and the fleet of an update.

A container is a process that unpacks a package and serves it as SageMaker's inference toolkit does, or that
starts the server of an image whose build context is known.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

__all__ = [
    "ANY",
    "IMAGES",
    "Container",
    "Fleet",
    "container_of",
    "read_object",
    "refuse",
    "resource_arn",
    "store_object",
]

ANY = "*"
IMAGES: dict[str, Path] = {}
"""The contexts of package.container by the names of the images that were built of them; ANY is any other."""
_PLAIN_ENV = ("PATH", "LANG", "LD_LIBRARY_PATH")


def refuse(message: str) -> Exception:
    """Return AWS's ValidationException."""
    from moto.sagemaker.exceptions import ValidationError

    refusal: Exception = ValidationError(message=message)
    return refusal


def resource_arn(backend: Any, kind: str, name: str) -> str:
    """Return the ARN of a SageMaker resource."""
    return f"arn:aws:sagemaker:{backend.region_name}:{backend.account_id}:{kind}/{name}"


class Container:
    """A process that serves one model; `said` is why it can't, once it has ended.

    An image that isn't known here has no process: it is ready, and rejects every request. `shadow` is a
    container that is to be ready as well, and is sent `shadow_percent` of the requests.
    """

    shadow: Container | None = None
    shadow_percent = 0.0

    def __init__(self, backend: Any, model: Any) -> None:
        described = model.primary_container
        self._folder = tempfile.TemporaryDirectory()
        self._url = ""
        self.said = ""
        self._started = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        served = self._package(backend.account_id, described) or _context(described["Image"])
        if served is None:
            self.said = f"the local AWS doesn't have the image {described['Image']}: set the input `context`"
            self._started.set()
            return
        env = {name: os.environ[name] for name in _PLAIN_ENV if name in os.environ}
        env |= {"OMP_NUM_THREADS": "1", "HOME": self._folder.name} | described.get("Environment", {})
        self._process = subprocess.Popen(
            [sys.executable, "-sP", "-m", "deploy_runner.local.container", str(served)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read_address, args=(self._process.stdout,), daemon=True).start()

    def _package(self, account: str, described: Mapping[str, Any]) -> Path | None:
        """Return the model's package, or None for an image alone."""
        if "ModelDataUrl" not in described:
            return None
        package = Path(self._folder.name) / "model.tar.gz"
        package.write_bytes(read_object(account, described["ModelDataUrl"]) or b"")
        return package

    def _read_address(self, lines: IO[str]) -> None:
        try:
            line = json.loads(lines.readline())
        except ValueError:
            line = {"error": "it printed nothing"}
        self._url, self.said = line.get("url", ""), line.get("error", "")
        self._started.set()

    @property
    def state(self) -> str:
        """Return "starting", "ready" or "failed"."""
        if not self._started.is_set():
            return "starting"
        ready = bool(self._url) or self._process is None
        if ready and self.shadow is not None:
            return self.shadow.state
        return "ready" if ready else "failed"

    def invoke(self, body: bytes, content_type: str, accept: str) -> tuple[int, str, bytes]:
        """Return the status, the content type and the body that the container answers."""
        if self._process is None:
            return 503, "text/plain", self.said.encode()
        headers = {"Content-Type": content_type, "Accept": accept}
        request = urllib.request.Request(f"{self._url}/invocations", body, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return 200, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()
        if self.shadow is not None:
            self.shadow.stop()


class Instances(Container):
    """Instances that run no container of their own, but those of inference components."""

    def __init__(self) -> None:
        self.said = ""

    @property
    def state(self) -> str:
        """Return "ready"."""
        return "ready"

    def stop(self) -> None:
        """Do nothing: there is no process."""


def _context(image: str) -> Path | None:
    return IMAGES.get(image) or IMAGES.get(ANY)


@dataclass(slots=True)
class Fleet:
    """What serves one endpoint, and what is to serve it next.

    `steps` yields the share of traffic, in percent, that the new containers get; `alarms` are the
    names whose state rolls the update back; `retained` the instances that an update is to keep;
    `answered` counts the requests that were answered.
    """

    container: Container
    config: Any = None
    next_container: Container | None = None
    next_config: Any = None
    steps: Iterator[int] = field(default_factory=lambda: iter(()))
    alarms: tuple[str, ...] = ()
    shifted: int = 0
    retained: int = 0
    count: Iterator[int] = field(default_factory=itertools.count)
    answered: Iterator[int] = field(default_factory=itertools.count)

    def pick(self) -> Container:
        """Return the container that gets the next request."""
        if self.next_container is not None and next(self.count) % 100 < self.shifted:
            return self.next_container
        return self.container


def read_object(account: str, uri: str) -> bytes | None:
    """Return the content of an `s3://` address, or None."""
    from moto.s3.models import s3_backends

    parts = urlsplit(uri)
    try:
        found = s3_backends[account]["aws"].get_object(parts.netloc, parts.path.lstrip("/"))
    except Exception:
        return None
    return None if found is None else bytes(found.value)


def store_object(account: str, uri: str, data: bytes) -> None:
    """Put an object at an `s3://` address."""
    from moto.s3.models import s3_backends

    parts = urlsplit(uri)
    s3_backends[account]["aws"].put_object(parts.netloc, parts.path.lstrip("/"), data)


def container_of(backend: Any, config: Any) -> Container:
    """Start the container of an endpoint config's first variant, and that of its shadow."""
    if "ModelName" not in config.production_variants[0]:
        return Instances()
    (variant, *_), shadows = config.production_variants, getattr(config, "shadow_production_variants", [])
    container = Container(backend, backend._models[variant["ModelName"]])
    for shadow in shadows:
        container.shadow = Container(backend, backend._models[shadow["ModelName"]])
        container.shadow_percent = 100 * shadow["InitialVariantWeight"] / variant["InitialVariantWeight"]
    return container
