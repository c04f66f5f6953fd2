"""Nothing but loopback is asked by a whole run of the repository's pipeline, nor by the server of its model.

strace sees every process of theirs, whatever it is written in: workers in namespaces of their own as well.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serve.server import listening, until

LONG_S = 25
"""onnxruntime 1.32 reports first after 20 s."""
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_DNS = "53"


def watching(log: Path, *options: str) -> list[str]:
    """Return the command that notes whom the command behind it asks."""
    strace = shutil.which("strace")
    assert strace, "what leaves the machine is watched by strace: apt-get install strace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    return [strace, "-f", "-q", *options, "--seccomp-bpf", "-e", calls, "-e", "signal=none", "-o", str(log)]


def left(log: Path) -> set[str]:
    """Return the addresses beyond loopback that a log names, and name servers wherever they are."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        for four, six in _ADDRESS.findall(line):
            address = (four or six).removeprefix("::ffff:")
            if (not address.startswith("127.") and address != "::1") or _DNS in _PORT.findall(line):
                found.add(address)
    return found


def environment(home: Path) -> Mapping[str, str]:
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_watch_sees_look_ups_and_connections(tmp_path: Path) -> None:
    code = (
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.create_connection(('192.0.2.1', 9), 0.01)\n"
        "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 0.01)\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('127.0.0.53', 53))\n"
    )
    subprocess.run([*watching(tmp_path / "log"), sys.executable, "-c", code], check=True)
    assert left(tmp_path / "log") == {"192.0.2.1", "127.0.0.53"}


@pytest.mark.slow
def test_nothing_leaves_the_machine(tmp_path: Path) -> None:
    project, home = tmp_path / "project", environment(tmp_path / "home")
    for part in ("configs", "examples"):
        shutil.copytree(ROOT / part, project / part)
    shutil.copy(ROOT / "pipeline.yaml", project)
    runner = [sys.executable, "-m", "deploy_runner"]
    run = [*watching(tmp_path / "run.log"), *runner, "run", "pipeline.yaml"]
    subprocess.run(run, cwd=project, env=home, check=True, stdout=subprocess.DEVNULL)
    assert "127.0.0.1" in (tmp_path / "run.log").read_text(), "its pushes ask local servers"
    assert left(tmp_path / "run.log") == set()

    subprocess.run([*runner, "get", "fp32", "--to", "model"], cwd=project, env=home, check=True)
    log = tmp_path / "serve.log"
    serve = [*watching(log, "-D"), *runner, "serve", "model", "--port", "0", "--json"]
    with listening(serve, folder=tmp_path / "s", cwd=project, env=home) as server:
        assert server.predict([[0.5] * 64]).status == 200
        for path in ("/", "/docs", "/openapi.json", "/metrics"):
            assert server.ask("GET", path).status == 200
        with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
            server.process.wait(LONG_S)
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    until(lambda: f"{server.process.pid} +++ exited" in log.read_text())
    assert left(log) == set()
    written = [
        path.relative_to(tmp_path / "home") for path in (tmp_path / "home").rglob("*") if path.is_file()
    ]
    assert [str(path) for path in written if "deploy-runner" not in str(path)] == []
