"""A hostile stage gets nothing of the runner's, reaches nobody, and leaves no process: as root and as a user."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import KERNELS, NO_NAMESPACES, Attacked, Kernel, attacked, running
from tests.waiting import wait_until

TOKEN = "a-token-of-the-runner"

# Every attack is a function; what it returns, or its error, becomes a figure.
ATTACKS = '''
import ctypes, glob, os, signal, socket, time
from pathlib import Path
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams

def environments(given):
    found = []
    for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/task/*/environ"):
        try:
            if b"%(token)s" in Path(path).read_bytes(): found.append(path)
        except OSError: pass
    return found

def memory(given):
    open(f"/proc/{given['runner']}/mem", "rb").close(); open(f"/proc/{os.getppid()}/mem", "rb").close()

def files_of_the_supervisor(given):
    return os.listdir(f"/proc/{os.getppid()}/root/home") + os.listdir(f"/proc/{os.getppid()}/fd")

def descriptors(given):
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try: found.add(os.path.basename(os.readlink(f"/proc/self/fd/{name}")).partition(":")[0])
        except OSError: pass
    return sorted(found)

def trace(given):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), 0, 0): raise OSError(ctypes.get_errno(), "ptrace")

def socket_by_path(given):
    with socket.socket(socket.AF_UNIX) as s: s.connect(given["socket"])

def datagram_by_path(given):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b"hello", given["datagrams"])

def abstract_socket(given):
    with socket.socket(socket.AF_UNIX) as s: s.connect(chr(0) + given["abstract"])

def kill_the_runner(given): os.kill(given["runner"], signal.SIGKILL)
def stop_the_runner(given): os.kill(given["runner"], signal.SIGSTOP)
def kill_a_stranger(given): os.kill(given["stranger"], signal.SIGKILL)

def kill_the_supervisor(given):
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL); os.kill(parent, signal.SIGSTOP)
    time.sleep(0.2)
    if os.getppid() == parent: raise OSError(0, "the first process of a namespace is not to be killed from inside")

def capabilities(given):
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")
    return [int(rows[name], 16) for name in names]

def mount(given):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", given["work"].encode(), b"tmpfs", 0, None): raise OSError(ctypes.get_errno(), "mount")

def write_beside(given): Path(given["beside"]).write_text("x")
def temporary(given): Path("/tmp/deploy-runner-hostile").write_text("x")
def kernel_setting(given): Path("/proc/sys/kernel/core_pattern").write_text("|/tmp/x")
def network(given):
    with socket.create_connection(("127.0.0.1", given["port"]), timeout=2): pass

def network_by_udp(given):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b"hello", ("127.0.0.1", given["port"]))

class Attack(Stage):
    """Try everything."""
    uses = "text.attack"
    class Params(StageParams):
        given: str
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
        import json
        given = json.loads(params.given) | {"work": os.getcwd()}
        for name, attack in list(globals().items()):
            if getattr(attack, "__code__", None) and attack.__code__.co_varnames[:1] == ("given",):
                try: ctx.figure(name, json.dumps(attack(given)))
                except OSError as error: ctx.figure(name, f"OSError {error.errno}")
        outputs.text.write_text("survived")

class Daemon(Stage):
    """Leave processes in sessions of their own, whose parents have ended, and go."""
    uses = "text.daemon"
    class Params(StageParams):
        mark: str
        goes: str = "well"
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
        r, w = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork() == 0: os.execvp("sh", ["sh", "-c", "while true; do sleep 0.1; done", params.mark])
                os.write(w, b"!")
                while True:
                    try: outputs.text.write_text("altered")
                    except OSError: pass
            os._exit(0)
        os.wait()
        os.read(r, 1)
        outputs.text.write_text("as it was")
        if params.goes == "exit": os._exit(3)
        if params.goes == "kill": os.kill(os.getpid(), 9)
        if params.goes == "ignore": signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if params.goes in ("hang", "ignore"): time.sleep(1000)

class Bomb(Stage):
    """Make processes until the kernel refuses."""
    uses = "text.bomb"
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        made = 0
        try:
            while made < 3000:
                if os.fork() == 0: signal.pause()
                made += 1
        except OSError as error: outputs.text.write_text(str(error.errno))
        ctx.figure("made", made)
'''


@pytest.fixture
def target(kernel: Kernel) -> Iterator[Attacked]:
    """A project with the attacks."""
    with attacked(kernel) as made:
        made.project.write("stages/attacks.py", ATTACKS.replace("%(token)s", TOKEN))
        yield made


@pytest.fixture
def prey(target: Attacked) -> Iterator[dict[str, Any]]:
    """What an attack is after: sockets, a port, a runner with a token, another process of the user."""
    folder = target.project.folder
    abstract = f"deploy-runner-{os.getpid()}-{os.urandom(3).hex()}"
    with ExitStack() as stack:

        def listen(family: int, kind: int, place: Any) -> socket.socket:
            made = stack.enter_context(socket.socket(family, kind))
            made.bind(place)
            return made

        listen(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "s")).listen()
        listen(socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "d"))
        listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}").listen()
        port = listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)).getsockname()[1]
        for name in ("s", "d"):
            (folder / name).chmod(0o777)
        sleep = ["sleep", "1000"]
        user = target.kernel.user or None
        given = {
            "socket": str(folder / "s"),
            "datagrams": str(folder / "d"),
            "abstract": abstract,
            "port": port,
        }
        for name in ("stranger", "runner"):
            process = subprocess.Popen(sleep, user=user, env={"TOKEN": TOKEN} if name == "runner" else {})
            stack.callback(process.wait)
            stack.callback(process.kill)
            given[name] = process.pid
        yield given
        assert not [line for line in states(given["stranger"], given["runner"]) if "S (sleeping)" not in line]


def states(*processes: int) -> list[str]:
    rows = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in processes]
    return [line for lines in rows for line in lines if line.startswith("State:")]


def test_an_attack_gets_nothing_and_reaches_nobody(
    target: Attacked, kernel: Kernel, prey: dict[str, Any]
) -> None:
    target.pipeline(f"""
        before: {{uses: run.command, with: {{command: echo}}}}
        x: {{uses: text.attack, needs: [before], with: {{given: {json.dumps(json.dumps(prey))}}}}}
        caps: {{uses: run.command, outputs: {{o: o}}, with: {{command: "grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status > $OUTPUT_O"}}}}
        """)
    record = target.run(TOKEN=TOKEN)
    figures = record["stages"]["x"]["figures"]
    kept = 1 << 1 if kernel in (Kernel(0, NO_NAMESPACES),) else 0
    assert json.loads(figures.pop("capabilities")) == [0, kept, kept, 0, 1]
    assert figures.pop("environments") == "[]"
    assert json.loads(figures.pop("descriptors")) == ["null", "pipe", "result.json"]
    assert all(said.startswith("OSError") for said in figures.values()), figures


def test_nothing_of_a_stage_outlives_it(target: Attacked, kernel: Kernel) -> None:
    mark = f"mark-{os.urandom(6).hex()}"
    target.pipeline(f"""
        well: {{uses: text.daemon, with: {{mark: {mark}}}}}
        gone: {{uses: text.daemon, with: {{mark: {mark}, goes: exit}}}}
        dead: {{uses: text.daemon, with: {{mark: {mark}, goes: kill}}}}
        slow: {{uses: text.daemon, timeout: 1s, with: {{mark: {mark}, goes: hang}}}}
        """)
    record = target.run("--cpu", "4")
    assert running(mark) == []
    states = {name: row["state"] for name, row in record["stages"].items()}
    assert states == {"well": "ran", "gone": "failed", "dead": "failed", "slow": "failed"}
    assert "exited 3" in record["stages"]["gone"]["error"]
    assert "SIGKILL" in record["stages"]["dead"]["error"]
    assert "timed out" in record["stages"]["slow"]["error"]
    assert target.cli("cache", "verify").returncode == 0


@pytest.mark.parametrize(
    ("kernel", "goes", "end"),
    [
        *(pytest.param(kernel, "hang", signal.SIGKILL, id=name) for name, kernel in KERNELS.items()),
        pytest.param(Kernel(0, NO_NAMESPACES), "hang", signal.SIGTERM, id="terminated"),
        pytest.param(Kernel(0, NO_NAMESPACES), "hang", signal.SIGINT, id="interrupted"),
        pytest.param(Kernel(0, NO_NAMESPACES), "ignore", signal.SIGTERM, id="killed after a while"),
        pytest.param(Kernel(0), "ignore", signal.SIGTERM, id="killed after a while with its namespace"),
    ],
)
def test_nothing_of_a_stage_outlives_the_runner(target: Attacked, goes: str, end: signal.Signals) -> None:
    mark = f"mark-{os.urandom(6).hex()}"
    target.pipeline(f"slow: {{uses: text.daemon, with: {{mark: {mark}, goes: {goes}}}}}")
    process = target.start("run", "--json")
    wait_until(lambda: bool(running(mark)))
    process.send_signal(end)
    process.communicate(timeout=60)
    wait_until(lambda: not running(mark))


def test_a_fork_bomb_ends_at_a_limit_that_the_run_says(target: Attacked, kernel: Kernel) -> None:
    if kernel == Kernel(0, NO_NAMESPACES):
        target.pipeline("x: {uses: text.upper, inputs: {text: in.txt}}")
        target.project.write("in.txt", "hello")
        assert target.run()["unconfined"] == ["making processes without end"]
        return
    target.pipeline("x: {uses: text.bomb}")
    record = target.run()
    assert record["stages"]["x"]["state"] == "ran"
    assert 100 < record["stages"]["x"]["figures"]["made"] < 1000
    assert target.project.objects()[0].read_bytes() == b"11"
