"""A runner of GitHub Actions in small: it runs this project's action and the jobs of a workflow that use it.

Scripts run in bash, with the environment and the files that GitHub gives them; expressions are evaluated.
Of the actions of others only the cache's are played: immutable entries in a folder, found by their key or
by the beginning of one, the newest first.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, clean_environment

__all__ = ["ActionsCache", "Done", "Job", "run_action", "run_job", "steps_of"]

BIN = Path(sys.executable).parent
_TOKEN = re.compile(r"'[^']*'|&&|\|\||==|!=|!|[()]|[a-z_]+\(\)|[A-Za-z_][\w.-]*|\s+")
_WORDS = {"&&": " and ", "||": " or ", "!": " not "}
_SKIPPED = ("actions/setup-python@", "actions/checkout@", "aws-actions/")


class ActionsCache:
    """The entries that the action's cache steps have saved, in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.keys: list[str] = []
        self.rejected: list[str] = []

    def save(self, key: str, path: Path) -> None:
        """Save a folder under a key, unless that has an entry: it can't be replaced."""
        assert path.is_dir()
        if key in self.keys:
            self.rejected.append(key)
            return
        shutil.copytree(path, self._folder / str(len(self.keys)), symlinks=True)
        self.keys.append(key)

    def restore(self, keys: list[str], path: Path) -> None:
        """Copy the newest entry back whose key is, or begins with, the first that matches."""
        for wanted in keys:
            found = [n for n, key in enumerate(self.keys) if key == wanted] or [
                n for n, key in enumerate(self.keys) if key.startswith(wanted)
            ]
            if found:
                shutil.copytree(self._folder / str(found[-1]), path, symlinks=True, dirs_exist_ok=True)
                return


@dataclass
class Job:
    """What a job runs with: its checkout, GitHub's variables, what the repository has, and an environment."""

    checkout: Path
    cache: ActionsCache
    event: str = "push"
    ref: str = "refs/heads/main"
    run_id: str = "1"
    secrets: Mapping[str, str] = field(default_factory=dict)
    vars: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cancel_when: Path | None = None

    @property
    def contexts(self) -> dict[str, Any]:
        """What expressions can refer to."""
        return {
            "github": {"event_name": self.event, "ref": self.ref, "run_id": self.run_id},
            "runner": {"os": "Linux", "arch": "X64"}, "secrets": self.secrets, "vars": self.vars,
        }  # fmt: skip


@dataclass
class Done:
    """How a job or an action ended."""

    success: bool = True
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""


def steps_of(action: Path = ROOT / "action.yml") -> list[dict[str, Any]]:
    """Return the steps of the action."""
    steps: list[dict[str, Any]] = yaml.safe_load(action.read_text())["runs"]["steps"]
    return steps


def evaluate(expression: str, contexts: Mapping[str, Any], *, success: bool) -> Any:
    """Return the value of an expression; what does not exist is an empty string."""
    words = {"always()": "True", "success()": repr(success), "failure()": repr(not success)}
    code, at = "", 0
    while at < len(expression):
        token = _TOKEN.match(expression, at)
        assert token, expression[at:]
        at, text = token.end(), token[0]
        is_name = text[0].isalpha() and not text.endswith("()")
        code += repr(_value(text, contexts)) if is_name else words.get(text, _WORDS.get(text, text))
    return eval(code, {"__builtins__": {}})


def _value(name: str, contexts: Mapping[str, Any]) -> Any:
    found: Any = contexts
    for part in name.split("."):
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return found


def filled(text: Any, contexts: Mapping[str, Any], *, success: bool = True) -> str:
    """Return a text with the values of its expressions."""

    def value(match: re.Match[str]) -> str:
        found = evaluate(match[1], contexts, success=success)
        return str(found).lower() if isinstance(found, bool) else str(found)

    return re.sub(r"\$\{\{(.*?)\}\}", value, str(text).lower() if isinstance(text, bool) else str(text))


def run_job(workflow: Path, name: str, job: Job) -> Done:
    """Run the steps of a workflow's job that use this project's action; false conditions skip it."""
    spec = yaml.safe_load(workflow.read_text())
    declared = spec["jobs"][name]
    if not _holds(declared.get("if", "success()"), job.contexts, success=True):
        return Done(outputs={"skipped": "true"})
    done = Done()
    for step in declared["steps"]:
        if step.get("uses", "").startswith(_SKIPPED) or not _holds(
            step.get("if", "success()"), job.contexts, success=done.success
        ):
            continue
        assert "/deploy-runner@" in step["uses"], step
        texts = {**spec.get("env", {}), **declared.get("env", {}), **step.get("env", {})}
        env = {k: filled(v, job.contexts) for k, v in texts.items()}
        inputs = {k: filled(v, job.contexts) for k, v in step.get("with", {}).items()}
        done = run_action(job, env={**job.env, **env}, **inputs)
    return done


def run_action(job: Job, *, env: Mapping[str, str] | None = None, **inputs: str) -> Done:
    """Run the action in a job; it is installed already."""
    spec = yaml.safe_load((ROOT / "action.yml").read_text())
    env = job.env if env is None else env
    given = {**{n: i.get("default", "") for n, i in spec["inputs"].items()}, **inputs}
    steps: dict[str, Any] = {}
    contexts = {**job.contexts, "inputs": given, "steps": steps, "env": env}
    done = Done()
    for step in spec["runs"]["steps"]:
        if step.get("uses", "").startswith(_SKIPPED) or step["name"].startswith("Install"):
            continue
        if not _holds(step.get("if", "success()"), contexts, success=done.success):
            continue
        if "run" in step:
            outputs = _script(step, job, env, contexts, done)
            steps[step.get("id", step["name"])] = {"outputs": outputs}
            continue
        values = {k: filled(v, contexts, success=done.success) for k, v in step["with"].items()}
        if "cache/restore@" in step["uses"]:
            keys = [values["key"], *values.get("restore-keys", "").split()]
            job.cache.restore(keys, job.checkout / values["path"])
        else:
            assert "cache/save@" in step["uses"], step
            job.cache.save(values["key"], job.checkout / values["path"])
    done.outputs = {k: filled(o["value"], contexts) for k, o in spec["outputs"].items()}
    return done


def _holds(condition: str, contexts: Mapping[str, Any], *, success: bool) -> bool:
    inner = condition.strip().removeprefix("${{").removesuffix("}}").strip()
    implied = "" if re.search(r"(always|success|failure)\(\)", inner) else "success() && "
    return bool(evaluate(f"{implied}({inner})", contexts, success=success))


def _script(
    step: Mapping[str, Any], job: Job, env: Mapping[str, str], contexts: Mapping[str, Any], done: Done
) -> dict[str, str]:
    temp = job.checkout.parent / f"{job.checkout.name}-temp"
    temp.mkdir(exist_ok=True)
    for name in ("output", "summary"):
        (temp / name).write_text("")
    given = {k: filled(v, contexts, success=done.success) for k, v in step.get("env", {}).items()}
    process = subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=job.checkout / filled(step.get("working-directory", "."), contexts),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            **clean_environment(), "PATH": f"{BIN}:{os.environ['PATH']}", "RUNNER_TEMP": str(temp),
            "GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": job.event, "GITHUB_REF": job.ref,
            "GITHUB_OUTPUT": str(temp / "output"), "GITHUB_STEP_SUMMARY": str(temp / "summary"), **env, **given,
        },
    )  # fmt: skip
    if job.cancel_when is not None and step.get("id") == "run":
        while not job.cancel_when.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # To the shell alone, as the runner does.
    done.log += process.communicate(timeout=300)[0]
    done.success = done.success and process.returncode == 0
    lines = (temp / "output").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)
