"""The text files of a container's build context: Dockerfile, requirements, README."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from deploy_runner.sdk import StageError

from ...server.devices import Device
from ...server.options import OPTIONS, add_options

__all__ = ["IGNORED", "dockerfile", "environment", "readme", "requirements", "roots"]

_PORT = "8080"
"""Where SageMaker asks, unless it sets SAGEMAKER_BIND_TO_PORT."""
IGNORED = "*\n!app\n!model\n!requirements.txt\n"
"""The .dockerignore: only what the Dockerfile copies is sent to the builder."""

_SERVERS = {
    "fastapi": ("fastapi", "uvicorn", "httptools"),
    "flask": ("flask", "waitress"),
}
_ALWAYS = (
    "uvloop", "orjson", "prometheus-client", "numpy", "backports.zstd; python_version < '3.14'"
)  # fmt: skip
_RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torch", "aot": "torch"}

_DOCKERFILE = """\
# Made by deploy-runner: docker build -t {name} .
FROM {base} AS build
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/venv \\
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check {hashes}-r /tmp/requirements.txt

FROM {base}
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
COPY --from=build /opt/venv /opt/venv
COPY app app
COPY model model
# The server's options; `docker run -e` sets others.
ENV {options}
# SageMaker may choose the port by SAGEMAKER_BIND_TO_PORT.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
{user}EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-m", "app.health"]
# {server}, started by app/, drains on SIGTERM and reloads on SIGHUP. SageMaker adds the argument `serve`.
ENTRYPOINT ["python", "-m", "app"]
"""

_README = """\
# {name}

A model behind HTTP, in a container: {format}, SHA-256 `{digest}`.

```
docker build -t {name} .
docker run --rm {gpus}-p {port}:{port} --read-only --tmpfs /tmp {name}
curl -s http://127.0.0.1:{port}/v2/models/{name}
```

| input | dtype | shape (-1: any size) |
|---|---|---|
{inputs}

Routes: `POST /predict`, SageMaker's `/ping` and `/invocations`, the Open Inference Protocol (`/v2`),
`/metrics`, `/openapi.json`, and a page to try the model at `/`. The options of the server are environment
variables, e.g. `-e SERVE_MAX_BATCH=32`; `docker run {name} --help` lists them. Set the port by `SERVE_PORT`,
which the health check reads too.

The image serves in SageMaker as it is: it takes the argument `serve`, listens on port {port} or on that of
`SAGEMAKER_BIND_TO_PORT`, and serves what SageMaker unpacks into /opt/ml/model, or its own model where that is
empty. {root}

`docker stop` sends SIGTERM: running requests are answered first. `docker kill --signal HUP` makes the server
load what is at `/srv/model` then (a mounted folder), beside the old model, and swap without a failed request.
{torch}"""

_TORCH = """
torch's default index holds builds with CUDA; for CPU builds, use the index that has them:
`docker build --build-arg PIP_EXTRA_INDEX_URL=… -t {name} .`
"""

_ROOT = """It reads files alone, so it runs as any user. AWS asks for
images that run as root: where that is enforced, make it with `user: 0`."""

_AOT = """
The model is machine code for one kind of processor; on another one the server refuses to start, and says what
that lacks. It checks its inputs, since the app sets `AOTI_RUNTIME_CHECK_INPUTS=1` before it loads the model.
"""


def requirements(roots: Iterable[str]) -> list[str]:
    """Return `name==version` of these installed distributions and of all that they need, sorted.

    Local versions (2.13.0+cpu) are cut: which build it is depends on the index, not on the pin.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    pending = [Requirement(root) for root in roots]
    pending = [root for root in pending if root.marker is None or root.marker.evaluate()]
    while pending:
        needed = pending.pop()
        name = canonicalize_name(needed.name)
        if name in found:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            raise StageError(f"{name} is not installed, and the image gets the versions that were tried here",
                             fix=f"pip install '{needed}', or set `requirements`") from None  # fmt: skip
        found[name] = installed.version.partition("+")[0]
        for line in installed.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (*needed.extras, "")
            ):
                pending.append(requirement)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def roots(server: str, format_: str, device: Device) -> list[str]:
    """Return the distributions that the server itself imports."""
    return [*_SERVERS[server], *_ALWAYS, runtime(format_, device)]


def runtime(format_: str, device: Device) -> str:
    """Return the distribution that runs a model's format on a device."""
    found = _RUNTIMES[format_]
    return "onnxruntime-gpu[cuda,cudnn]" if (found, device) == ("onnxruntime", "cuda") else found


def environment(
    server: str, format_: str, name: str, options: Sequence[str], *,
    device: Device = "cpu", own_code: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Return the server's options as environment variables; `own_code` is what an io artifact has.

    Raises StageError where `options` aren't options of the server.
    """
    chosen: dict[str, Any] = {"host": "0.0.0.0", "port": _PORT, "name": name}
    chosen |= {"server": server} if server != "fastapi" else {}
    chosen |= {"device": device} if device != "cpu" else {}
    chosen |= {"trust": True} if own_code or _RUNTIMES[format_] == "torch" else {}
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_options(parser)
    chosen |= vars(parser.parse_args(options))
    texts = {name: "1" if value is True else str(value) for name, value in chosen.items()}
    return {option.variable: texts[option.name] for option in OPTIONS if option.name in texts}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StageError(f"the container would fail to serve the model: {message}")


def dockerfile(
    name: str, base: str, user: int, server: str, options: Mapping[str, str], *, hashes: str = ""
) -> str:
    """Return the Dockerfile: two stages, a health check, an entry point in its exec form, no shell.

    `hashes` is pip's option that requires them.
    """
    return _DOCKERFILE.format(
        name=name, base=base, hashes=hashes, port=options["SERVE_PORT"],
        user=f"USER {user}:{user}\n" if user else "",
        options=" \\\n    ".join(f"{variable}={_quoted(value)}" for variable, value in options.items()),
        server="uvicorn" if server == "fastapi" else "waitress",
    )  # fmt: skip


def _quoted(value: str) -> str:
    """Return a value as ENV takes it: https://docs.docker.com/reference/dockerfile/#env."""
    if "\n" in value or "\r" in value:
        raise StageError(f"the option {value!r} has more than one line")
    for special in '\\"$':
        value = value.replace(special, f"\\{special}")
    return f'"{value}"'


def readme(name: str, digest: str, described: dict[str, Any], *, device: Device, port: str, user: int) -> str:
    """Return the README, with the model's real shapes."""
    rows = [f"| `{p['name']}` | {p['dtype']} | {_shape(p)} |" for p in described["inputs"]]
    torch = _TORCH.format(name=name) if _RUNTIMES[described["format"]] == "torch" else ""
    if described["format"] == "aot":
        torch += _AOT
    return _README.format(
        name=name, format=described["format"], digest=digest, inputs="\n".join(rows), port=port, torch=torch,
        gpus="--gpus all " if device == "cuda" else "", root=_ROOT if user else "It runs as root.",
    )  # fmt: skip


def _shape(port: dict[str, Any]) -> str:
    dynamic = port.get("dynamic", {})
    return str([-1 if str(axis) in dynamic else size for axis, size in enumerate(port["shape"])])
