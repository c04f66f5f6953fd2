"""package.container: what is in the context, and its start command run for real, without Docker."""

from __future__ import annotations

import ast
import importlib.resources
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.utils import canonicalize_name

from deploy_runner.errors import GateError, StageError
from deploy_runner.registry import Registry
from deploy_runner.server.archives import unpack
from deploy_runner.stages.package import locked as locks
from deploy_runner.stages.package.smoke import smoke_test
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import ROOT
from tests.serve import models
from tests.serve.containers import entry_point, environment, instructions, started
from tests.serve.models import Digits

HADOLINT = Path(sys.executable).parent / "hadolint"


def build(folder: Path, model: Path, reference: Path | None, **params: Any) -> StageRun:
    inputs = {"model": model} | ({"reference": reference} if reference else {})
    return run_stage(stage("package.container"), folder, inputs=inputs, params={"name": "digits", **params})


@pytest.fixture(scope="module")
def contexts(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, StageRun]:
    """A context of each kind."""
    folder = tmp_path_factory.mktemp("contexts")
    kinds = {
        "onnx behind FastAPI": (digits.onnx, {}),
        "int8 behind Flask": (
            digits.int8,
            {"server": "flask", "options": ["--max-batch", "32", "--port", "9000"]},
        ),
        "TorchScript behind FastAPI": (digits.torchscript, {}),
    }
    return {name: build(folder / name, model, digits.bundle, **p) for name, (model, p) in kinds.items()}


KINDS = ("onnx behind FastAPI", "int8 behind Flask", "TorchScript behind FastAPI")


@pytest.mark.parametrize("kind", KINDS)
def test_the_app_answers_the_reference_cases_when_the_context_is_made(
    contexts: Mapping[str, StageRun], kind: str
) -> None:
    figures = contexts[kind].figures
    assert figures["samples"] == 65
    assert float(str(figures["max_abs"])) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_dockerfile_is_sound(contexts: Mapping[str, StageRun], kind: str) -> None:
    context = contexts[kind]["context"]
    done = subprocess.run([HADOLINT, context / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    builder, final = instructions(context, "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", final)
    assert builder == f"{final} AS build"
    assert instructions(context, "USER") == ["10001:10001"]
    assert entry_point(context) == ["python", "-m", "app"]
    for copied in (line.split()[-2] for line in instructions(context, "COPY") if not line.startswith("--")):
        assert (context / copied).exists()
        assert f"!{copied}" in (context / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_every_requirement_is_pinned_and_only_what_the_kind_needs(
    contexts: Mapping[str, StageRun], kind: str
) -> None:
    lines = (contexts[kind]["context"] / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"numpy", "orjson", "uvloop", "prometheus-client"} < names
    assert ("fastapi" in names, "flask" in names) == ("FastAPI" in kind, "Flask" in kind)
    assert ("torch" in names, "onnxruntime" in names) == ("Torch" in kind, "Torch" not in kind)
    assert "onnx" not in names


def locked(pins: str, digest: str = "0" * 64) -> str:
    """Lock the versions of a requirements.txt, as pip-compile writes it."""
    lines = [f"{pin} \\\n    --hash=sha256:{digest}\n    # via -r requirements.txt" for pin in pins.split()]
    return "--index-url https://packages.example/simple\n\n" + "\n".join(lines)


def test_hashes_are_required_where_they_are_given(
    contexts: Mapping[str, StageRun], digits: Digits, tmp_path: Path
) -> None:
    pins = (contexts[KINDS[0]]["context"] / "requirements.txt").read_text()
    lock = tmp_path / "locked.txt"
    lock.write_text(locked(pins))
    made = run_stage(stage("package.container"), tmp_path / "c", inputs={"model": digits.onnx, "lock": lock})
    assert (made["context"] / "requirements.txt").read_text() == locked(pins) + "\n"
    assert "--require-hashes -r" in instructions(made["context"], "RUN")[0]
    assert subprocess.run([HADOLINT, made["context"] / "Dockerfile"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        (locked("numpy==1.2.3"), "has numpy 1.2.3, but 2.4.6 is what was tested here"),
        (locked("zipp==1"), "locked.txt has no numpy, which the server needs"),
        (f"{locked('numpy==2.4.6')}\nzipp==1", "'zipp==1' has no version, or no hash"),
        (locked("numpy>=2"), "'numpy>=2' has no version, or no hash"),
        (locked("-e."), "has no numpy"),
        (locked("numpy=2.4.6"), "'numpy=2.4.6' is no requirement"),
    ],
)
def test_a_lock_that_is_not_whole_is_refused(lock: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "locked.txt").write_text(lock)
    with pytest.raises(StageError, match=re.escape(said)):
        locks.read(tmp_path / "locked.txt", ["numpy==2.4.6"])


def test_the_app_is_the_servers_own_source_and_imports_nothing_of_the_engine(
    contexts: Mapping[str, StageRun],
) -> None:
    app = contexts[KINDS[0]]["context"] / "app"
    source = ROOT / "deploy_runner/server"
    files = [file for file in app.rglob("*") if file.is_file() and file.parent.name != "swagger"]
    assert {f.relative_to(app): f.read_bytes() for f in files} == {
        f.relative_to(source): f.read_bytes() for f in source.rglob("*.py")
    }
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("deploy_runner") for name in names), file
    kind = Registry(ROOT / "tests").get("package.container")
    assert kind is not None
    held = {f.name.removeprefix("server/") for f in kind.implementation if f.name.startswith("server/")}
    sources = {f.relative_to(source).as_posix() for f in source.rglob("*.py")}
    assert held == sources, "the action key holds the server's source"
    kind = Registry(ROOT / "tests").get("package.sagemaker")
    assert kind is not None
    packed = {f"server/{name}" for name in sources if name.startswith("raw/")}
    assert packed <= {f.name for f in kind.implementation}, "the action key holds what reads raw input"


def test_the_app_has_swagger_uis_own_files(contexts: Mapping[str, StageRun]) -> None:
    brought = importlib.resources.files("fastapi_swagger") / "resources"
    app = contexts[KINDS[0]]["context"] / "app/swagger"
    names = {"swagger-ui-bundle.js", "swagger-ui.css"}
    assert {f.name: f.read_bytes() for f in app.iterdir()} == {n: (brought / n).read_bytes() for n in names}


def test_equal_inputs_give_equal_bytes(digits: Digits, tmp_path: Path) -> None:
    found = [
        {p.relative_to(c): p.read_bytes() for p in sorted(c.rglob("*")) if p.is_file()}
        for c in (build(tmp_path / n, digits.onnx, digits.bundle)["context"] for n in ("a", "b and c"))
    ]
    assert found[0] == found[1]


def test_the_base_image_may_be_pinned_by_its_digest(digits: Digits, tmp_path: Path) -> None:
    image = f"registry.example/python:3.11@sha256:{'0' * 64}"
    context = build(tmp_path, digits.onnx, None, base_image=image, user=1234)["context"]
    assert instructions(context, "FROM") == [f"{image} AS build", image]
    assert instructions(context, "USER") == ["1234:1234"]


def test_what_would_not_serve_fails_when_it_is_made(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match="the container would fail to serve the model: unrecognized arguments: --nope"
    ):
        build(tmp_path / "a", digits.onnx, digits.bundle, options=["--nope"])
    with pytest.raises(GateError, match="the app answers a reference case with 413: "):
        build(tmp_path / "b", digits.onnx, digits.bundle, options=["--max-body", "1KiB"])
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(StageError, match="is truncated or damaged"):
        build(tmp_path / "c", tmp_path / "model.onnx", None)


def healthy(context: Path, port: str, python: str = sys.executable, **env: str) -> bool:
    """Run the HEALTHCHECK as Docker does, in the image's folder, beside a proxy that answers nothing."""
    (line,) = instructions(context, "HEALTHCHECK")
    command = [python, *json.loads(line.partition("CMD ")[2])[1:]]
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    given = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment(context),
        "SERVE_PORT": port,
    }
    done = subprocess.run(command, cwd=context, env={**given, **proxy, **env}, check=False, timeout=60)
    return done.returncode == 0


def run_as_the_container(context: Path, folder: Path, python: str = sys.executable) -> None:
    """Start the image with `serve`, as SageMaker does, run its health check, ask, and end it."""
    with started(context, folder, "serve", python=python) as server:
        assert server.name == "digits"
        port = server.url.rpartition(":")[2]
        assert healthy(context, port, python)
        assert server.ask("GET", "/ping").status == 200
        assert server.ask("GET", "/docs").status == 200
        answer = server.ask("POST", "/invocations", np.full((1, 64), 0.5).tolist())
        assert (answer.status, len(answer.json["outputs"]["output"][0])) == (200, 10)
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not healthy(context, port, python)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_serves(contexts: Mapping[str, StageRun], kind: str, tmp_path: Path) -> None:
    run_as_the_container(contexts[kind]["context"], tmp_path)


@pytest.mark.slow
def test_the_image_serves_the_package_that_sagemaker_has_unpacked(
    contexts: Mapping[str, StageRun], digits: Digits, other: Path, tmp_path: Path
) -> None:
    """What push.sagemaker deploys is what answers, and its smoke test is passed."""
    given = {"model": other, "reference": digits.bundle}
    packed = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=given, params={"atol": 10.0})
    base = tmp_path / "base"
    unpack(packed["package"], base / "model")
    context = contexts["onnx behind FastAPI"]["context"]
    env = {"SAGEMAKER_BASE_DIR": str(base)}
    with started(context, tmp_path / "placed", "serve", env=env) as server:

        def invoke(body: bytes) -> bytes:
            return server.ask("POST", "/invocations", raw=body).body

        assert smoke_test(invoke, packed["smoke"], atol=None, rtol=None) > 0
    with (
        started(context, tmp_path / "own", "serve", env={"SAGEMAKER_BASE_DIR": str(tmp_path)}) as server,
        pytest.raises(GateError, match="the smoke test failed: the answers differ"),
    ):
        smoke_test(invoke, packed["smoke"], atol=None, rtol=None)


@pytest.mark.parametrize(("kind", "port"), [(KINDS[0], "8080"), (KINDS[1], "9000")])
def test_the_port_is_one_everywhere(contexts: Mapping[str, StageRun], kind: str, port: str) -> None:
    context = contexts[kind]["context"]
    assert instructions(context, "EXPOSE") == [port]
    assert environment(context)["SERVE_PORT"] == port
    readme = (context / "README.md").read_text()
    assert f"-p {port}:{port} " in readme
    assert f"listens on port {port} " in readme


def test_every_option_of_the_image_is_a_variable(
    contexts: Mapping[str, StageRun], used_port: int, tmp_path: Path
) -> None:
    context = contexts["int8 behind Flask"]["context"]
    assert environment(context) == {
        "SERVE_HOST": "0.0.0.0", "SERVE_PORT": "9000", "SERVE_NAME": "digits", "SERVE_SERVER": "flask",
        "SERVE_MAX_BATCH": "32",
    }  # fmt: skip
    variables = {"SERVE_NAME": "other", "SERVE_HOST": "127.0.0.1"}
    bound = {"SERVE_PORT": str(used_port), "SAGEMAKER_BIND_TO_PORT": "0"}
    with started(context, tmp_path, env=variables | bound) as server:
        assert server.name == "other"
        port = server.url.rpartition(":")[2]
        assert healthy(context, str(used_port), SERVE_HOST="127.0.0.1", SAGEMAKER_BIND_TO_PORT=port)


@pytest.mark.parametrize("value", ["plain", 'a "$PATH" \\c', "${x} 'y'"])
def test_an_option_reaches_the_server_as_it_was_written(value: str, tmp_path: Path) -> None:
    from deploy_runner.stages.package import image

    options = image.environment("fastapi", "onnx", "m", ["--io", value])
    (tmp_path / "Dockerfile").write_text(image.dockerfile("m", "python:3", 0, "fastapi", options))
    assert environment(tmp_path)["SERVE_IO"] == value
    assert instructions(tmp_path, "USER") == []


@pytest.mark.parametrize("server", ["fastapi", "flask"])
def test_a_slow_model_is_tried_without_a_network_too(tmp_path: Path, server: str) -> None:
    from deploy_runner.server.trial import answers

    model = models.slow(tmp_path / "model")
    found = answers([str(model), "--server", server], [b"[[100000, 0]]"])
    assert found == [(200, b'{"outputs":{"sum":[100000.0]}}')]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_start_command_serves_in_a_fresh_environment_of_its_requirements(
    contexts: Mapping[str, StageRun], kind: str, tmp_path: Path
) -> None:
    context = contexts[kind]["context"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    install: list[Any] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    asked: list[Any] = ["--dry-run", "--ignore-installed", "--report", tmp_path / "report.json"]
    subprocess.run([*install, *asked, "-r", context / "requirements.txt"], check=True)
    hashes: dict[str, str] = {
        canonicalize_name(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in json.loads((tmp_path / "report.json").read_text())["install"]
    }
    pins = (context / "requirements.txt").read_text().split()
    (tmp_path / "lock.txt").write_text(
        "\n".join(f"{pin} --hash=sha256:{hashes[pin.partition('==')[0]]}" for pin in pins)
    )
    subprocess.run([*install, "--require-hashes", "-r", tmp_path / "lock.txt"], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    pinned = (context / "requirements.txt").read_text().count("==")
    assert len(listed.splitlines()) - 2 - pinned <= 2, "pip and setuptools alone are there besides"
    run_as_the_container(context, tmp_path, str(python))
