"""The steps of action.yml: install, begin, run, collect.

GitHub gives the inputs as one JSON object in `INPUTS`, and no input is ever part of a script. This file runs
before deploy-runner is installed, on whatever Python the job has, so it needs the standard library alone.
What is wrong becomes an annotation, a line of the log, an entry of the job summary and the output `result`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "requirement"]

OLDEST = (3, 11)
# Runs for these events execute code of the repository. Others, e.g. `issue_comment` and `workflow_run`, can
# be triggered by anybody, and write to the cache of the default branch.
TRUSTED = frozenset(
    {"push", "schedule", "workflow_dispatch", "repository_dispatch", "release", "merge_group", "deployment"}
)
LIMIT = 100_000  # Characters of `result`: Linux takes 128 KiB as the value of one environment variable.


class Wrong(Exception):
    """What the user must change, in one sentence."""


def main(step: str) -> int:
    """Run a step of the action and return its exit code."""
    # GitHub keeps the case in which a workflow writes the name of an input.
    given = json.loads(os.environ["INPUTS"])
    inputs = {name.lower(): str(value).strip() for name, value in given.items()}
    try:
        return STEPS[step](inputs)
    except Wrong as wrong:
        complain(str(wrong))
        output("result", json.dumps({"error": str(wrong), "exit_code": 2, "stages": {}}))
        return 2


def complain(message: str) -> None:
    """Annotate the run and add the message to its summary."""
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print(f"::error::deploy-runner: {escaped}", flush=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        shown = message.replace("&", "&amp;").replace("<", "&lt;")
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"### deploy-runner\n\n{shown}\n")


def output(name: str, value: str) -> None:
    """Set an output of the step; the delimiter is random, so no value can end it."""
    end = uuid.uuid4().hex
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as file:
        file.write(f"{name}<<{end}\n{value}\n{end}\n")


def flag(inputs: dict[str, str], name: str) -> bool:
    """Return an input that is `true` or `false`."""
    if inputs[name] not in ("true", "false", ""):
        raise Wrong(f"the input {name} is {inputs[name]!r}; set it to true or false")
    return inputs[name] == "true"


def folder_of(inputs: dict[str, str]) -> Path:
    """Return the working directory, below the job's workspace."""
    name = inputs["working-directory"]
    folder = Path(os.environ["GITHUB_WORKSPACE"], name)
    if not folder.is_dir():
        raise Wrong(f"the input working-directory names no folder of the workspace: {name}")
    return folder


def lines_of(inputs: dict[str, str], name: str) -> list[str]:
    """Return the lines of an input without blank ones and comments."""
    lines = (line.strip() for line in inputs[name].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pipeline_of(inputs: dict[str, str]) -> str:
    """Return the pipeline as the command line takes it for a file in any case."""
    name = inputs["pipeline"] or "pipeline.yaml"
    plain = name.endswith((".yaml", ".yml")) and not name.startswith("-")
    return name if plain or "/" in name else f"./{name}"


# Install -------------------------------------------------------------------------------------


def install(inputs: dict[str, str]) -> int:
    """Install deploy-runner and the user's requirements, in an environment of this job."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        needs = "deploy-runner needs Python 3.11 or newer"
        raise Wrong(f"{needs}, and this job has {found}: set the input python-version, e.g. '3.12'")
    folder = folder_of(inputs)
    extras = [e for e in re.split(r"[\s,]+", inputs["extras"]) if e]
    if inputs["remote"] or os.environ.get("DEPLOY_RUNNER_REMOTE"):
        extras.append("remote")
    wanted = [requirement(inputs["package"], extras)]
    if file := inputs["requirements"]:
        if not (folder / file).is_file():
            raise Wrong(f"the input requirements names no file of the working directory: {file}")
        wanted += ["-r", file]
    python = environment()
    pip = [sys.executable, "-I", "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    if subprocess.run([*pip, "install", "-q", *wanted], cwd=folder).returncode:
        raise Wrong(f"pip could not install {wanted[0]}; the log has its messages")
    output("python", str(python))
    return 0


def requirement(package: str, extras: Sequence[str]) -> str:
    """Return what pip takes: this checkout, a path below the workspace, a URL, or a name with its version."""
    for extra in extras:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", extra):
            raise Wrong(f"the input extras contains {extra!r}, which is not the name of an extra")
    name = f"deploy-runner[{','.join(extras)}]" if extras else "deploy-runner"
    if "://" in package:
        return f"{name} @ {package}"
    if not package or "/" in package or package.startswith(".") or package.endswith(".whl"):
        path = Path(os.environ["GITHUB_WORKSPACE"], package) if package else Path(__file__).parent
        if not path.exists():
            raise Wrong(f"the input package names no file or folder of the workspace: {package}")
        return f"{name} @ {path.resolve().as_uri()}"
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(\s*(?:[=<>!~].*)?)", package)
    if not found:
        raise Wrong(f"the input package is {package!r}; set it to a path, a URL, or a name with its version")
    return name.replace("deploy-runner", found[1], 1) + found[2]


def environment() -> Path:
    """Return the interpreter of an environment: the one that the job has activated, or a new one.

    A new one sees what the job has installed already; what is installed into it stays out of the machine's
    Python, which other jobs of a self-hosted runner use, and which Linux distributions protect from pip.
    """
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    made = Path(os.environ["RUNNER_TEMP"], "deploy-runner")
    if not made.exists():
        venv.EnvBuilder(system_site_packages=True, symlinks=True).create(made / "venv")
        (made / "bin").mkdir()
        (made / "bin/deploy-runner").symlink_to(made / "venv/bin/deploy-runner")
        with open(os.environ["GITHUB_PATH"], "a", encoding="utf-8") as file:
            file.write(f"{made / 'bin'}\n")  # The command alone: later steps keep their own Python.
    return made / "venv/bin/python"


# The cache of Actions ------------------------------------------------------------------------


def begin(inputs: dict[str, str]) -> int:
    """Say where the store is that the cache of Actions keeps, and whether it is to be restored."""
    ours = ("DEPLOY_RUNNER_REMOTE", "DEPLOY_RUNNER_HOME")
    if inputs["remote"] or any(os.environ.get(name) for name in ours):
        return 0  # A shared cache, or a store that the user keeps.
    store = folder_of(inputs) / ".deploy-runner"
    # The path is part of an entry's identity, so two ways to write it must not differ.
    output("store", os.path.relpath(store, os.environ["GITHUB_WORKSPACE"]))
    # A store that an earlier step has filled knows more than any entry does.
    output("restore", str(not store.exists()).lower())
    return 0


def collect(inputs: dict[str, str]) -> int:
    """Remove from the store what no run needs, and name its content if this job has added to it."""
    folder, (began, result) = folder_of(inputs), state()
    actions = sorted(p for p in (folder / ".deploy-runner/actions").rglob("*") if p.is_file())
    since_ns = began.stat().st_mtime_ns if began.exists() else 0
    if not since_ns or all(p.stat().st_mtime_ns < since_ns for p in actions):
        return 0
    if "run" in parsed(result):  # One that was killed isn't recorded: collecting would remove what it built.
        gc = [*command(), "cache", "gc", pipeline_of(inputs)]
        subprocess.run(gc, cwd=folder, check=False)
        actions = [p for p in actions if p.exists()]
    content = hashlib.sha256()
    for path in actions:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    if os.environ["GITHUB_EVENT_NAME"] in TRUSTED:
        output("content", content.hexdigest()[:32])
    return 0


# Run -----------------------------------------------------------------------------------------


def run(inputs: dict[str, str]) -> int:
    """Run the pipeline; SIGINT and SIGTERM have it record what is finished."""
    folder, (began, result) = folder_of(inputs), state()
    args = [*command(), "run", "--json", *options(inputs), pipeline_of(inputs), *stages_of(inputs)]
    environ = dict(os.environ)
    if inputs["remote"]:
        environ["DEPLOY_RUNNER_REMOTE"] = inputs["remote"]
    signals: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def end(number: int, _: object) -> None:
        signals.append(number)
        for process in running:
            process.terminate()

    # GitHub tells this process alone that the job is cancelled or has exceeded its time.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    began.write_bytes(b"")
    with open(result, "wb") as file:
        running.append(subprocess.Popen(args, cwd=folder, stdout=file, env=environ))
    if signals:
        running[0].terminate()
    code = running[0].wait()
    found = parsed(result)
    if not found:
        said = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        code = code or 1
        message = f"the run {said} without a result; the log has its messages"
        found = {"error": message, "exit_code": code, "stages": {}}
        complain(message)
        result.write_text(json.dumps(found), encoding="utf-8")
    output("result", shortened(found))
    output("result-file", str(result))
    return 128 - code if code < 0 else code


def options(inputs: dict[str, str]) -> list[str]:
    """Return the options of the command line, each one word, whatever is in it."""
    found = [f"--config={line}" for line in lines_of(inputs, "config")]
    if flag(inputs, "push"):
        found.append("--set=cache.push=true")
    return [*found, *(f"--set={line}" for line in lines_of(inputs, "set"))]


def stages_of(inputs: dict[str, str]) -> list[str]:
    """Return the stages; names may be on several lines and quoted, and `#` begins a comment."""
    try:
        names = shlex.split(inputs["stages"], comments=True)
    except ValueError as error:
        raise Wrong(f"the input stages can't be read: {error}") from None
    for name in names:
        if name.startswith("-"):
            raise Wrong(f"the input stages contains {name!r}, which is not the name of a stage")
    return names


def command() -> list[str]:
    """Return how deploy-runner is started; files of the working directory can't replace modules of Python."""
    return [os.environ.get("PYTHON") or sys.executable, "-P", "-m", "deploy_runner"]


def state() -> tuple[Path, Path]:
    """Return the file whose time says when the run began, and the file of its result."""
    temp = Path(os.environ["RUNNER_TEMP"])
    return temp / "deploy-runner-began", temp / "deploy-runner.json"


def parsed(file: Path) -> dict[str, Any]:
    """Return the JSON object that a run printed last; nothing if there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        found = json.loads(file.read_bytes().splitlines()[-1])
        if isinstance(found, dict):
            return found
    return {}


def shortened(result: dict[str, Any]) -> str:
    """Return the result as JSON, with less about the stages where it would be too long for a variable."""
    stages = {id_: {"state": stage["state"]} for id_, stage in result["stages"].items()}
    new = {id_: stage for id_, stage in stages.items() if stage["state"] != "hit"}
    text = json.dumps(result)
    for fewer in (stages, new, {}):
        if len(text) <= LIMIT:
            break
        text = json.dumps({**result, "stages": fewer, "shortened": True})
    return text


STEPS = {"install": install, "begin": begin, "run": run, "collect": collect}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
