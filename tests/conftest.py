"""What every test may use: projects on disk and the real command line."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.machines import Bucket, Machines, Share

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"
HELD = DIGITS / "heldout.npz"
CALIBRATION = DIGITS / "calibration.npz"

# Whatever a test starts can be interrupted, also where the tests are a job in the background of a shell,
# which has them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT_STAGES = '''
"""Stage types on texts, quick enough for every test."""
from __future__ import annotations
import os, time
from pathlib import Path
from deploy_runner.sdk import (
    Context, Field, File, Folder, GateError, Output, Stage, StageError, StageInputs, StageOutputs, StageParams,
)

class Upper(Stage):
    """Write a text in capitals."""
    uses = "text.upper"
    class Params(StageParams):
        suffix: str = Field("", description="is put at the end")
        times: int = Field(1, ge=1, description="how often")
    class Inputs(StageInputs):
        text: File = Field(description="the text")
    class Outputs(StageOutputs):
        text: File = Output("upper.txt")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        outputs.text.write_text((inputs.text.read_text().upper() + params.suffix) * params.times)
        ctx.figure("letters", len(params.suffix))

class Join(Stage):
    """Join texts."""
    uses = "text.join"
    class Inputs(StageInputs):
        texts: dict[str, File] = Field(description="the texts by name")
        more: list[File] | None = Field(None, description="further texts")
    class Outputs(StageOutputs):
        text: File = Output("joined.txt")
        folder: Folder = Output("parts")
    def run(self, ctx: Context, params, inputs: Inputs, outputs: Outputs) -> None:
        rows = [f"{name}={path.read_text()}" for name, path in inputs.texts.items()]
        rows += [path.read_text() for path in inputs.more or []]
        outputs.text.write_text("\\n".join(rows))
        (outputs.folder / "sub").mkdir(parents=True)
        (outputs.folder / "sub" / "a.txt").write_text("a")
        (outputs.folder / "b.txt").write_text("b")

class Odd(Stage):
    """Misbehave in the way that `how` says."""
    uses = "text.odd"
    class Params(StageParams):
        how: str = "well"
        path: str = ""
        secret: str = ""
    class Inputs(StageInputs):
        text: File | None = None
    class Outputs(StageOutputs):
        text: File = Output("odd.txt")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        how = params.how
        if how == "fail": raise StageError("it can't be done", fix="do something else")
        if how == "gate": ctx.figure("measured", 3); raise GateError("3 is more than 2")
        if how == "crash": raise ZeroDivisionError("division by zero")
        if how == "kill": os.kill(os.getpid(), 9)
        if how == "exit": os._exit(7)
        if how == "sleep": time.sleep(60)
        if how == "sleep-child": os.system("echo begun; sleep " + params.path)
        if how == "nothing": return
        if how == "extra": (outputs.text.parent / "extra.txt").write_text("x")
        if how == "read":
            try: open(params.path).read()
            except OSError: pass
        if how == "write": open(params.path, "w").write("x")
        if how == "connect":
            import socket
            socket.create_connection(("127.0.0.1", int(params.path)), timeout=2)
        if how == "link": os.symlink("/etc/passwd", outputs.text); return
        if how == "log": print("the secret is", params.secret); ctx.figure("said", params.secret)
        if how == "env": outputs.text.write_text("\\n".join(sorted(os.environ))); return
        outputs.text.write_text("odd")
'''


def module_of(file: Path) -> Any:
    """Return a file as plain Python imports it, without an entry in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would change deploy-runner."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOY_RUNNER", "GITHUB_", "SERVE_"))}


class Project:
    """A project in a folder, run through the real command line in a real process."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
        folder.mkdir(parents=True, exist_ok=True)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOY_RUNNER", "GITHUB_"))}

    def write(self, name: str, text: str | bytes) -> Path:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    def pipeline(self, stages: str, *, head: str = "") -> None:
        """Write pipeline.yaml with these stages."""
        body = textwrap.indent(textwrap.dedent(stages).strip("\n"), "  ")
        self.write("pipeline.yaml", f"version: 1\nname: test\n{head}stages:\n{body}\n")

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start the command line."""
        return subprocess.Popen(
            [self.python, "-m", "deploy_runner", *args],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def cli(self, *args: str, exits: Any = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line; assert its exit code and that no traceback reaches the user."""
        process = self.start(*args, **env)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        done = subprocess.CompletedProcess(args, process.returncode, out, err)
        assert "Traceback" not in out + err, out + err
        if exits is not None:
            assert done.returncode == exits, out + err
        return done

    def run(self, *args: str, exits: Any = 0, **env: str) -> dict[str, Any]:
        """Run the pipeline and return the JSON object that `run --json` prints last."""
        done = self.cli("run", *args, "--json", exits=exits, **env)
        value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return value

    def states(self, *args: str, exits: Any = 0, **env: str) -> dict[str, str]:
        """Run the pipeline and return stage → state."""
        return {k: v["state"] for k, v in self.run(*args, exits=exits, **env)["stages"].items()}

    def objects(self) -> list[Path]:
        """Return the store's object files."""
        return sorted(p for p in (self.folder / ".deploy-runner/cas").rglob("*") if p.is_file())

    def output(self, name: str, *args: str, **env: str) -> bytes:
        """Return an output's bytes, taken out of the store."""
        place = self.folder / f"taken-{len(list(self.folder.iterdir()))}"
        self.cli("get", name, *args, "--to", str(place), **env)
        data = place.read_bytes()
        place.unlink()
        return data


@pytest.fixture(scope="session")
def openvino_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the extra `openvino`: 190 MB, which no other test needs."""
    from tests.overlay import overlay

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return overlay(shared / "overlays", "openvino")


@pytest.fixture
def openvino(openvino_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO in this process."""
    from tests.overlay import packages_of

    monkeypatch.syspath_prepend(packages_of(openvino_python.parent.parent))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project with the stage types of TEXT_STAGES."""
    made = Project(tmp_path / "project")
    made.write("stages/texts.py", TEXT_STAGES)
    made.write("in.txt", "hello")
    return made


@pytest.fixture
def chain(project: Project) -> Project:
    """Three stages in a row."""
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
        b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {times: 2}}
        c: {uses: text.upper, inputs: {text: "${{ stages.b.outputs.text }}"}}
        """
    )
    return project


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port of loopback on which something listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment that leads to a local S3."""
    from deploy_runner.local.servers import dry_run

    folder = tmp_path_factory.mktemp("s3") / "server"
    with dry_run(folder, services=("aws",), log=lambda line: None) as env:
        yield env


@pytest.fixture
def bucket(s3_server: Mapping[str, str]) -> Iterator[Bucket]:
    """A shared cache in a bucket of its own, behind a proxy of its own."""
    from tests.faults.proxy import FaultProxy
    from tests.machines import Bucket

    with FaultProxy(s3_server["AWS_ENDPOINT_URL"]) as proxy:
        yield Bucket(s3_server, f"bucket-{os.urandom(4).hex()}", proxy)


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Share:
    """A shared cache, in a folder and in a bucket."""
    from tests.machines import Share

    if request.param == "folder":
        return Share(tmp_path / "share")
    found: Share = request.getfixturevalue("bucket")
    return found


@pytest.fixture
def machines(tmp_path: Path, remote: Share) -> Machines:
    """Machines that share a cache of either kind."""
    from tests.machines import Machines

    return Machines(tmp_path, remote)


@pytest.fixture
def s3_machines(tmp_path: Path, bucket: Bucket) -> Machines:
    """Machines that share a bucket."""
    from tests.machines import Machines

    return Machines(tmp_path, bucket)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-formats", action="store_true", help="write docs/formats.md from what the models do"
    )
    parser.addoption(
        "--write-targets", action="store_true", help="write docs/targets.md from what the targets do"
    )
