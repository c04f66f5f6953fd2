"""One action: from a decision to a worker's request, and from its end to a result."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DeployRunnerError, GateError, StageError, StoreError
from ...pipeline.credentials import secret_values
from ...silence import SILENCE
from ...store.actions import ActionRecord
from ...store.cas import Store
from ...store.folders import walk
from ...types import Event, Json, PathSource, StageNode, StageResult, State
from ..keys import KeyEnvironment
from ..plan import Decision
from . import gpus
from .collect import collect, keep_evidence, read_result
from .held import SMALLEST_BYTES, Held, advice
from .redact import Redactor
from .sandbox import NOT_STARTED, Confinement
from .undeclared import undeclared, undeclared_module, unseen_file
from .worker import PROGRESS

__all__ = [
    "Action", "Project", "finish", "progress_event", "raise_failure", "record_for",
    "request", "secrets_of",
]  # fmt: skip

_GIT_S = 10.0
_PLAIN_ENV = ("PATH", "LANG", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LD_LIBRARY_PATH")
_TAIL_LINES = 200

_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class Project(NamedTuple):
    """What an action needs to know of its pipeline: the folder, whether its target is live, the run.

    Where it `keeps_workdirs` everything in them is a copy.
    """

    root: str
    live: bool
    run: str = ""
    keeps_workdirs: bool = False


@dataclass(slots=True)
class Action:
    """A stage that is running, or about to."""

    node: StageNode
    decision: Decision
    folder: Path
    redactor: Redactor
    started_s: float = field(default_factory=time.monotonic)
    pid: int = 0
    confinement: Confinement = NOT_STARTED
    pipe: int = -1
    deadline_s: float = 0.0
    stopping: str = ""
    kill_at_s: float = 0.0
    unfinished: bytes = b""
    tail: list[str] = field(default_factory=list)
    gpus: tuple[str, ...] = ()
    held: Held = field(default_factory=Held)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        """Return the action's name, which no other action of the run has."""
        return self.folder.name

    @property
    def work(self) -> Path:
        """Return the worker's private folder."""
        return self.folder / "work"

    def close(self) -> None:
        """Let go what the worker needed while it ran."""
        self.held.close()
        self.stack.close()

    def lines(self, data: bytes) -> list[str]:
        """Return the finished lines of what the worker printed, without secrets."""
        *whole, self.unfinished = (self.unfinished + data).split(b"\n")
        lines = [self.redactor.line(line).decode("utf-8", "replace") for line in whole]
        self.tail = [*self.tail, *(s for s in lines if not s.startswith(PROGRESS))][-_TAIL_LINES:]
        return lines

    def signal(self, number: int) -> None:
        """Send a signal to all of the worker's processes."""
        if self.pid:
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                return


def progress_event(stage: str, line: str) -> Event:
    """Return what a progress line of a stage says; a fraction that is no number is none."""
    fraction, _, text = line.removeprefix(PROGRESS).partition("\x1f")
    try:
        done = min(1.0, max(0.0, float(fraction)))
    except ValueError:
        done = 0.0
    return Event("stage-progress", time.time(), stage, text, done)


def request(
    action: Action,
    project: Project,
    store: Store,
    keys: KeyEnvironment,
    environ: Mapping[str, str],
    cloud: Mapping[str, str],
    *,
    require_sandbox: bool = False,
) -> dict[str, Any]:
    """Return what the worker needs to know. Raises StageError for a secret that is not set."""
    node = action.node
    digests = keys.digests(node.code)
    resources = node.resources
    rows = [_staged(node, name, action.decision, project, store) for name in action.decision.inputs]
    return {
        "action": action.name,
        "stage": node.id,
        "module": node.module,
        "class_name": node.class_name,
        "stage_dir": node.stage_dir,
        "implementation": [file.path for file in node.implementation],
        "params": dict(node.params),
        "inputs": rows,
        "outputs": {n: [o.path, o.kind, o.optional] for n, o in node.outputs.items()},
        "work": str(action.work),
        "result": str(action.folder / "result.json"),
        "env": _environment(action, environ, cloud),
        "declared_env": dict(node.env),
        "seed": int(action.decision.key[:8], 16),
        "threads": resources.cpu,
        "trust": node.trust,
        "matrix": dict(node.matrix),
        "target": dict(node.target),
        "secrets": secrets_of(node, environ),
        "lineage": dict(action.decision.lineage),
        "digests": {n: a.digest for n, a in action.decision.inputs.items()},
        "run": project.run if project.live else "",
        "commit": commit_of(project.root) if project.live and node.converges else "",
        "code": {f.name: [f.path, digests[f.name]] for f in node.code},
        "packages": {name: keys.version(name) for name in node.packages},
        "project": project.root,
        "stores": store.homes,
        "user_home": environ.get("HOME", ""),
        "network": node.network,
        "readable": [*_beside(node), *_named_files(cloud)],
        "devices": gpus.devices() if action.gpus else [],
        "memory_bytes": resources.memory_bytes,
        "require_sandbox": require_sandbox,
        "held": {} if project.keeps_workdirs else _held(action, rows, store),
    }


def _held(action: Action, rows: Iterable[Mapping[str, Any]], store: Store) -> dict[str, Any]:
    """Hold what the worker may read where it is, and return its states."""
    for row in rows:
        if "pieces" in row:
            for path, _, _, digest in row["pieces"]:
                if path:
                    action.held.offer(path, store.memo, shown=f"object {digest}")
        elif row["kind"] == "file":
            path = os.path.realpath(row["path"])
            action.held.offer(path, store.memo, shown=row["source"], known_as=row["path"])
        else:
            with suppress(OSError, StoreError):  # The worker says it.
                for name, path, found in walk(row["path"]):
                    if found.st_size >= SMALLEST_BYTES:
                        action.held.offer(path, store.memo, shown=f"{row['source']}/{name}")
    return action.held.states


def _beside(node: StageNode) -> list[str]:
    """Return what the stage type imports from elsewhere: a package's folder, which is listed, or a file."""
    elsewhere = (f for f in node.implementation if not f.path.startswith(f"{node.stage_dir}/"))
    return sorted({os.path.dirname(f.path) if "/" in f.name else f.path for f in elsewhere})


def _named_files(cloud: Mapping[str, str]) -> list[str]:
    """Return the files that the network's environment names: credentials, tokens, certificates."""
    return sorted({value for value in cloud.values() if os.path.isabs(value) and os.path.isfile(value)})


def commit_of(project: str) -> str:
    """Return the commit that is checked out in a project, or nothing where there is no Git."""
    import subprocess

    try:
        command = ["git", "-C", project, "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def secrets_of(node: StageNode, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the secrets that a stage declares. Raises StageError for a lack."""
    return secret_values(node.secrets, environ)


def _staged(node: StageNode, name: str, decision: Decision, project: Project, store: Store) -> dict[str, Any]:
    """Return where an input comes from and where it goes: `inputs/<name><suffix>`."""
    artifact = decision.inputs[name]
    suffix = decision.suffixes[name] if artifact.kind == "file" else ""
    row: dict[str, Any] = {"name": name, "place": f"{name}{suffix}", "kind": artifact.kind}
    source = node.inputs[name]
    if isinstance(source, PathSource):
        row["source"] = source.path
        row["path"] = f"{project.root}/{source.path}"
        row["artifact"] = artifact.row()
    else:
        row["pieces"] = store.pieces(artifact)
    return row


def _environment(action: Action, environ: Mapping[str, str], cloud: Mapping[str, str]) -> dict[str, str]:
    work = str(action.work)
    threads = str(action.node.resources.cpu)
    env = dict(SILENCE) | {name: environ[name] for name in (*_PLAIN_ENV, *SILENCE) if name in environ}
    env |= {
        "HOME": f"{work}/scratch",
        "TMPDIR": f"{work}/scratch",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": threads,
        "DEPLOY_RUNNER_STAGE": action.node.id,
        "DEPLOY_RUNNER_SEED": str(int(action.decision.key[:8], 16)),
    }
    if not action.node.network:
        env["HF_HUB_OFFLINE"] = "1"  # Else its client retries for a minute.
    if action.gpus:
        env[gpus.VISIBLE] = ",".join(action.gpus)
    return {**env, **cloud, **action.node.env}


def finish(
    action: Action, status: int, store: Store, project: Project, *, seconds: float, spawn_error: str
) -> tuple[StageResult, ActionRecord | None]:
    """Return how the stage ended, and the record to put before its lock is given back.

    On success its outputs are in the store.
    """
    node, decision = action.node, action.decision
    result = read_result(action.folder)
    figures: dict[str, Json] = action.redactor.json(result.get("figures", {}))
    ended = StageResult(
        node.id, "failed", decision.key, {}, figures, seconds, decision.reason,
        sandbox=str(action.confinement or ""), lacks=action.confinement.lacks,
    )  # fmt: skip
    try:
        if action.stopping == "interrupted":
            return ended._replace(state="interrupted", reason="the run was interrupted"), None
        raise_failure(action, status, result, spawn_error, root=project.root)
        outputs = collect(action.folder, node.outputs, store, action.redactor)
    except DeployRunnerError as error:
        message = action.redactor.text(str(error)).encode("utf-8", "backslashreplace").decode()
        keep = isinstance(error, GateError) and not node.secrets
        evidence = keep_evidence(action.folder) if keep else ""
        return ended._replace(error=message, exit_code=error.exit_code, evidence=evidence), None
    state: State = "healed" if decision.state == "heal" else "ran"
    if node.converges and project.live and result.get("converged"):
        state = "converged"
    if node.converges and project.live:
        return ended._replace(state=state, outputs=outputs), None
    ended = ended._replace(state=state, outputs=outputs)
    return ended, record_for(action, ended)


def record_for(action: Action, result: StageResult) -> ActionRecord:
    """Return the record of an action that has succeeded."""
    key, preimage = action.decision.key, action.decision.preimage
    return ActionRecord(key, action.node.uses, result.outputs, result.figures, preimage, result.seconds)


def raise_failure(
    action: Action, status: int, result: dict[str, Any], spawn_error: str, *, root: str
) -> None:
    """Raise what has gone wrong, if anything has; `status` is that of waitpid(2), `root` the project."""
    if spawn_error:
        raise StageError(spawn_error)
    if action.stopping:
        raise StageError(action.stopping, fix="raise `timeout:`, or make the stage faster")
    if changed := action.held.changed():
        raise StageError(
            f"{changed} was written to while the stage read it", fix="run again once that is done"
        )
    found = undeclared(result.get("undeclared", ()), action.node, root)
    error = result.get("error")
    for lookup in found:
        if lookup.is_read or (error and lookup.explains(error)):
            raise StageError(lookup.message, fix=lookup.fix)
    if error:
        message, fix = undeclared_module(error, action.node, root) or (error["message"], error["fix"])
        fix = advice(action.held, str(action.work), message) or fix
        fix = "; ".join([*([fix] if fix else []), *(f"{row.message}: {row.fix}" for row in found[:1])])
        raise _error_class(error["class"])(message, fix=fix)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise StageError(f"its worker was killed by {name}{hint}", fix=_last_line(action, root))
    code = os.waitstatus_to_exitcode(status)
    if code or not result.get("ok"):
        what = "the command" if "command" in result else "its worker"
        raise StageError(f"{what} exited {code}", fix=_last_line(action, root))
    if found:
        raise StageError(found[0].message, fix=found[0].fix)


def _error_class(name: str) -> type[DeployRunnerError]:
    from ... import errors

    found = getattr(errors, name, StageError)
    return found if isinstance(found, type) and issubclass(found, DeployRunnerError) else StageError


def _last_line(action: Action, root: str) -> str:
    """Return what the worker printed last, and which file of the project it speaks of without seeing it."""
    last = next((line for line in reversed(action.tail) if line.strip()), "")
    said = f"last line of output: {last.strip()[:300]}" if last else ""
    hint = advice(action.held, str(action.work), last) or unseen_file(
        last, action.node, root, os.path.realpath(action.folder)
    )
    if not hint and any(text in last for text in _FULL):
        hint = f"free some space in {action.folder.parent} and run again"
    return f"{said}; {hint}" if hint else said
