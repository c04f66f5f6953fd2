"""Inside a worker: stage the inputs, confine the process, run the stage, say how it went.

A request is the JSON that `action.request` makes. The result goes to a file that the stage can't
reach; everything printed goes to the log pipe. Secrets arrive in the request alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import DeployRunnerError, StageError
from ...registry import is_projects, load_class
from ...sdk import Context, Stage
from ...server.reasons import reason
from ...store.copies import copy_path, copy_pieces
from ...store.files import store_error, writing
from ...types import Artifact
from ...usercode.advice import missing_module
from ...usercode.loading import load
from . import installation
from .audit import ReadGuard, Scope
from .families import hand_over_without_sockets, shorten
from .held import Places
from .readiness import READY, refused
from .sandbox import Confinement, Sandbox
from .writes import WriteGuard

__all__ = ["PROGRESS", "run"]

PROGRESS = "\x1eprogress\x1f"
"""Begins a log line that is a progress report: fraction, \\x1f, message."""

_MEMORY_SLACK_BYTES = 512 << 20


def run(request: dict[str, Any], sandbox: Sandbox, tell: Callable[[Confinement], None]) -> int:
    """Run one request in this process, which ends afterwards; return its exit code.

    `tell` is told how the process is confined before anything of the stage runs.
    """
    result_fd = os.open(request["result"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    guard = ReadGuard(Scope("/nonexistent"))
    ctx: Context | None = None
    result: dict[str, Any] = {}
    try:
        inputs = _stage_inputs(request, sandbox)
        tell(_confine(request, sandbox))
        cls = load_class(request["module"], request["class_name"], request["stage_dir"])
        asked = request.get("ask")
        if asked is not None and asked["verb"] == READY:
            _write_result(result_fd, {"ok": True, "answer": refused(asked)})
            return 0
        ctx = _context(request)
        params, stage_inputs, outputs = _models(cls, request, inputs)
        _seed(request)
        command = getattr(cls, "command", None)
        if command is not None:
            _exec(command(cls(), ctx, params, stage_inputs, outputs), inputs, request, result_fd)
        guard = _guard(request, inputs)
        if asked is None:
            cls().run(ctx, params, stage_inputs, outputs)
        else:
            result["answer"] = _answer(cls(), asked, ctx, params, stage_inputs)
        result |= {"ok": True, "undeclared": guard.found()}
    except BaseException as error:
        expected = isinstance(error, DeployRunnerError) and error.__cause__ is None
        if not expected and "ask" not in request:
            traceback.print_exc()
        result |= {"ok": False, "undeclared": guard.found(), "error": _described(error, request)}
    if ctx is not None:
        result |= {"figures": _finite(ctx.figures), "converged": ctx.converged}
    _write_result(result_fd, result)
    return 0 if result["ok"] else 1


def _answer(stage: Stage, asked: dict[str, str], ctx: Context, params: Any, inputs: Any) -> Any:
    match asked["verb"]:
        case "status":
            return stage.status(ctx, params, inputs)
        case "credentials":
            return stage.credentials(ctx, params)
        case "rollback":
            return stage.rollback(ctx, params, asked["to"])
        case _:
            return stage.promote(ctx, params, inputs, asked["status"])


def _write_result(fd: int, result: Mapping[str, Any]) -> None:
    view = memoryview(json.dumps(result).encode())
    while view:
        view = view[os.write(fd, view) :]


def _stage_inputs(request: dict[str, Any], sandbox: Sandbox) -> dict[str, Path]:
    """Put every input into the private workdir, verified."""
    os.umask(0o022)
    work = Path(request["work"])
    for name in ("inputs", "outputs", "scratch"):
        (work / name).mkdir()
    os.chdir(work)
    put = Places(request["held"], mounts=sandbox.has_own_root).put
    placed = {}
    for row in request["inputs"]:
        target = work / "inputs" / row["place"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if "pieces" in row:
            with writing(target):
                copy_pieces(map(tuple, row["pieces"]), target, folder=row["kind"] == "folder", put=put)
        else:
            copy_path(row["path"], target, Artifact(*row["artifact"]), request["project"], put)
        placed[row["name"]] = target
    for path, _, _ in request["outputs"].values():
        (work / "outputs" / path).parent.mkdir(parents=True, exist_ok=True)
    return placed


def _confine(request: dict[str, Any], sandbox: Sandbox) -> Confinement:
    os.environ.clear()
    os.environ.update(request["env"])
    if request["memory_bytes"]:
        limit = request["memory_bytes"] + _MEMORY_SLACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    read = _readable(request)
    hide = [request["project"], *request["stores"]]
    confinement = sandbox.close_up(read=read, write=[request["work"]], hide=hide, devices=request["devices"])
    if not sandbox.guards_files:
        WriteGuard(request["work"]).install()
    if sandbox.refuses_sockets:
        hand_over_without_sockets()
    elif sandbox.has_own_root:
        shorten("/dev/shm")
    if request["require_sandbox"]:
        confinement.require()
    return confinement


def _readable(request: dict[str, Any]) -> list[str]:
    """Return what of the project, and of the user's code elsewhere, the stage may read."""
    code = [path for path, _ in request["code"].values()]
    return [*code, request["stage_dir"], *request["readable"]]


def _guard(request: dict[str, Any], inputs: Mapping[str, Path]) -> ReadGuard:
    project = os.path.realpath(request["project"])
    own_types = is_projects(request["module"])
    allowed = [
        *(path for path, _ in request["code"].values()),
        *(request["implementation"] if own_types else [request["stage_dir"]]),
        *request["readable"],
        *installation.interpreter_paths(),
        *installation.inside([project]),
    ]
    guard = ReadGuard(
        Scope(
            project=request["project"],
            home=request["user_home"],
            work=request["work"],
            allowed=allowed,
            inputs={row["source"]: str(inputs[row["name"]]) for row in request["inputs"] if "source" in row},
            code=frozenset(request["code"]),
            stage_dir=request["stage_dir"] if own_types else "",
            made=frozenset(path for path, _, _ in request["outputs"].values()),
        )
    )
    guard.install()
    return guard


def _context(request: dict[str, Any]) -> Context:
    files = {name: Path(path) for name, (path, _) in request["code"].items()}
    digests = {name: digest for name, (_, digest) in request["code"].items()}
    return Context(
        stage=request["stage"],
        workdir=Path(request["work"]) / "scratch",
        seed=request["seed"],
        threads=request["threads"],
        trust=request["trust"],
        matrix=request["matrix"],
        env=request["declared_env"],
        target=request["target"],
        secrets=request["secrets"],
        code_files=files,
        lineage=request["lineage"],
        digests=request["digests"],
        packages=request["packages"],
        run=request["run"],
        commit=request["commit"],
        _load=lambda code: load(code, files, digests),
        _log=lambda message: print(message, flush=True),  # noqa: T201 - the log pipe
        _progress=lambda fraction, message: print(  # noqa: T201
            f"{PROGRESS}{fraction}\x1f{message}", flush=True
        ),
    )


def _models(cls: type[Stage], request: dict[str, Any], placed: Mapping[str, Path]) -> tuple[Any, Any, Any]:
    params = _params(cls, _with_secrets(request["params"], request["secrets"]))
    inputs: dict[str, Any] = {}
    for name, path in placed.items():
        field, _, member = name.partition("/")
        if member:
            inputs.setdefault(field, {})[member] = path
        else:
            inputs[field] = path
    for field in cls.Inputs.model_fields:
        members = inputs.get(field)
        if isinstance(members, dict) and list(members) == [str(i) for i in range(len(members))]:
            annotation = str(cls.Inputs.model_fields[field].annotation)
            if "list[" in annotation:
                inputs[field] = list(members.values())
    if "ask" in request and not placed:
        return params, None, None
    made = Path(request["work"]) / "outputs"
    outputs = {name: made / path for name, (path, _, _) in request["outputs"].items()}
    return params, cls.Inputs(**inputs), cls.Outputs(**outputs)


def _params(cls: type[Stage], given: Any) -> Any:
    """Return the parameters, which are judged again now that the values of secrets are known."""
    try:
        return cls.Params.model_validate_json(json.dumps(given))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors()]
        raise StageError(f"`with` is invalid: {'; '.join(wrong)}") from None


def _with_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$secret"}:
            return secrets[value["$secret"]]
        return {name: _with_secrets(child, secrets) for name, child in value.items()}
    return [_with_secrets(child, secrets) for child in value] if isinstance(value, list) else value


def _seed(request: dict[str, Any]) -> None:
    random.seed(request["seed"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(request["seed"] % 2**32)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(request["threads"])
        torch.manual_seed(request["seed"])


def _exec(argv: list[str], inputs: Mapping[str, Path], request: dict[str, Any], result_fd: int) -> None:
    """Become the user's command; its exit status is the stage's."""
    outputs = Path(request["work"]) / "outputs"
    for name, path in inputs.items():
        os.environ[f"INPUT_{_variable(name)}"] = str(path)
    for name, (path, _, _) in request["outputs"].items():
        os.environ[f"OUTPUT_{_variable(name)}"] = str(outputs / path)
    _write_result(result_fd, {"ok": True, "command": argv[-1], "figures": {}})
    os.close(result_fd)
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        print(f"{argv[0]} can't be started: {error.strerror}", flush=True)  # noqa: T201
        os._exit(127)


def _variable(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def _described(error: BaseException, request: dict[str, Any]) -> dict[str, str]:
    """Return the error as data: class, message, fix, and where in the user's code."""
    if isinstance(error, DeployRunnerError):
        return {"class": type(error).__name__, "message": error.message, "fix": error.fix}
    where = _user_frame(error, request)
    said = reason(error)
    kind = "StageError"
    fix = "see the stage's log for the traceback"
    if isinstance(error, ModuleNotFoundError):
        message, fix = missing_module(
            error, project=request["project"], folder=_folder(request), extra=_extra(request),
            packages=request["packages"],
        )  # fmt: skip
        return {"class": kind, "message": message, "fix": fix, "module": error.name or ""}
    if isinstance(error, MemoryError):
        return {
            "class": kind,
            "message": "it exceeded its memory limit",
            "fix": "raise resources.memory",
        }
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = store_error(error, error.filename or request["work"])
        return {"class": kind, "message": f"{full.message}{where}", "fix": full.fix}
    message = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return {"class": kind, "message": f"{message}{where}", "fix": fix}


def _folder(request: dict[str, Any]) -> str:
    """Return the folder of the stage type's file, which may be one of its family."""
    file = getattr(sys.modules.get(request["module"]), "__file__", None)
    return os.path.dirname(file) if file else str(request["stage_dir"])


def _extra(request: dict[str, Any]) -> str:
    with contextlib.suppress(Exception):
        return load_class(request["module"], request["class_name"], request["stage_dir"]).extra
    return ""


def _user_frame(error: BaseException, request: dict[str, Any]) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename in request["code"]]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _finite(value: Any) -> Any:
    """Return figures as JSON can hold them: what is not finite becomes a string."""
    if isinstance(value, dict):
        return {str(name): _finite(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
