"""The text files of a container's build context: Dockerfile, requirements, README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["IGNORED", "arguments", "dockerfile", "readme", "requirements"]

PORT = 8000
IGNORED = "*\n!app\n!model\n!requirements.txt\n"
"""The .dockerignore: only what the Dockerfile copies is sent to the builder."""

_SERVERS = {
    "fastapi": ("fastapi", "uvicorn", "httptools"),
    "flask": ("flask", "waitress"),
}
_ALWAYS = ("uvloop", "orjson", "prometheus-client", "numpy")
_RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torch", "aot": "torch"}

_DOCKERFILE = """\
# Made by deploy-runner: docker build -t {name} .
FROM {base} AS build
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/venv \\
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt

FROM {base}
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
COPY --from=build /opt/venv /opt/venv
COPY app app
COPY model model
USER {user}:{user}
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD {health}
# {server}, started by app/, drains on SIGTERM and reloads on SIGHUP.
CMD {command}
"""

_PROBE = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout=2)"

_README = """\
# {name}

A model behind HTTP, in a container: {format}, SHA-256 `{digest}`.

```
docker build -t {name} .
docker run --rm -p {port}:{port} --read-only --tmpfs /tmp {name}
curl -s http://127.0.0.1:{port}/v2/models/{name}
```

| input | dtype | shape (-1: any size) |
|---|---|---|
{inputs}

Routes: `POST /predict`, SageMaker's `/ping` and `/invocations`, the Open Inference Protocol (`/v2`),
`/metrics`, `/openapi.json`, and a page to try the model at `/`. The options of the server are environment
variables, e.g. `-e SERVE_MAX_BATCH=32`; `docker run {name} python -m app --help` lists them.

`docker stop` sends SIGTERM: running requests are answered first. `docker kill --signal HUP` makes the server
load what is at `/srv/model` then (a mounted folder), beside the old model, and swap without a failed request.
{torch}"""

_TORCH = """
torch's default index holds builds with CUDA; for CPU builds, use the index that has them:
`docker build --build-arg PIP_EXTRA_INDEX_URL=… -t {name} .`
"""

_AOT = """
The model is machine code for one kind of processor; on another one the server refuses to start, and says what
that lacks. It checks its inputs, since the app sets `AOTI_RUNTIME_CHECK_INPUTS=1` before it loads the model.
"""


def requirements(roots: Iterable[str]) -> list[str]:
    """Return `name==version` of these installed distributions and of all that they need, sorted.

    Local versions (2.13.0+cpu) are cut: which build it is depends on the index, not on the pin.
    """
    from importlib.metadata import distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    pending = [Requirement(root) for root in roots]
    while pending:
        needed = pending.pop()
        name = canonicalize_name(needed.name)
        if name in found:
            continue
        installed = distribution(name)
        found[name] = installed.version.partition("+")[0]
        for line in installed.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (*needed.extras, "")
            ):
                pending.append(requirement)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def roots(server: str, format_: str) -> list[str]:
    """Return the distributions that the server itself imports."""
    return [*_SERVERS[server], *_ALWAYS, _RUNTIMES[format_]]


def arguments(
    server: str, format_: str, name: str, options: Sequence[str], *, own_code: bool = False
) -> list[str]:
    """Return what follows `python -m app` in the container; `own_code` is what an io artifact has."""
    chosen = ["--host", "0.0.0.0", "--port", str(PORT), "--name", name]
    chosen += ["--server", server] if server != "fastapi" else []
    chosen += ["--trust"] if own_code or _RUNTIMES[format_] == "torch" else []
    return [*chosen, *options]


def dockerfile(name: str, base: str, user: int, server: str, arguments: Sequence[str]) -> str:
    """Return the Dockerfile: two stages, no root, a health check, the command in its exec form."""
    health = json.dumps(["python", "-c", _PROBE.format(port=PORT)])
    command = json.dumps(["python", "-m", "app", *arguments])
    return _DOCKERFILE.format(
        name=name, base=base, user=user, port=PORT, health=health, command=command,
        server="uvicorn" if server == "fastapi" else "waitress",
    )  # fmt: skip


def readme(name: str, digest: str, described: dict[str, Any]) -> str:
    """Return the README, with the model's real shapes."""
    rows = [f"| `{p['name']}` | {p['dtype']} | {_shape(p)} |" for p in described["inputs"]]
    torch = _TORCH.format(name=name) if _RUNTIMES[described["format"]] == "torch" else ""
    if described["format"] == "aot":
        torch += _AOT
    return _README.format(
        name=name, format=described["format"], digest=digest, inputs="\n".join(rows), port=PORT, torch=torch
    )


def _shape(port: dict[str, Any]) -> str:
    dynamic = port.get("dynamic", {})
    return str([-1 if str(axis) in dynamic else size for axis, size in enumerate(port["shape"])])
