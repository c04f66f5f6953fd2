"""Which GPUs a run may use, and that a worker reaches the devices that it is given, and no others."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from deploy_runner.engine.execute import gpus, supervisor
from deploy_runner.engine.execute.sandbox import Sandbox


@pytest.mark.parametrize(
    ("named", "usable"),
    [
        ("", ()),
        ("0", ("0",)),
        ("2, GPU-4f", ("2", "GPU-4f")),
        ("1,-1,0", ("1",)),
        ("-1", ()),
        ("NoDevFiles", ("NoDevFiles",)),
    ],
)
def test_the_variable_of_cuda_says_which_gpus_may_be_used(named: str, usable: tuple[str, ...]) -> None:
    assert gpus.usable({"CUDA_VISIBLE_DEVICES": named}) == usable


def test_without_it_the_drivers_folders_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVER", str(tmp_path / "gpus"))
    assert gpus.usable({}) == ()
    for address in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / address).mkdir(parents=True)
    assert gpus.usable({}) == ("0", "1")


def test_the_drivers_devices_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DEVICES", str(tmp_path))
    for name in ("nvidia0", "nvidiactl", "null", "sda"):
        (tmp_path / name).touch()
    assert gpus.devices() == [f"{tmp_path}/nvidia0", f"{tmp_path}/nvidiactl"]


@pytest.mark.parametrize("given", [(), ("/dev/full",)])
def test_a_confined_process_reaches_the_devices_that_it_is_given(given: tuple[str, ...]) -> None:
    def work(channel: socket.socket, sandbox: Sandbox) -> int:
        os.chdir("/")
        sandbox.close_up(read=(), write=(), devices=given)
        try:
            with open("/dev/full", "r+b", buffering=0) as file:
                found = len(file.read(3) or b"")
        except OSError:
            found = 0
        channel.send(json.dumps({"found": found}).encode())
        return 0

    pid = os.fork()
    if pid == 0:
        supervisor.prepare()
        child, ours = supervisor.fork(work, network=False, close=lambda: None)
        os.waitpid(child, 0)
        found = json.loads(ours.recv(1 << 16))["found"]
        os._exit(found)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (3 if given else 0)
