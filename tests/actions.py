"""A runner of GitHub Actions in small: it runs this project's action and the jobs of a workflow that use it.

Scripts run in bash, with the environment and the files that GitHub gives them; expressions are evaluated.
Of the actions of others only the cache's are played, by GitHub's rules: an entry belongs to the branch (or
pull request) that saved it and to the path it was saved from, can't be replaced, and is found by its key or
by the beginning of one, the newest first, in the run's own branch before the base and the default branch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, clean_environment

__all__ = ["ActionsCache", "Done", "Job", "run_action", "run_job", "steps_of"]

BIN = Path(sys.executable).parent
_TOKEN = re.compile(r"'[^']*'|&&|\|\||==|!=|!|[()]|[a-z_]+\(\)|toJSON\b|[A-Za-z_][\w.-]*|\s+")
_WORDS = {"&&": " and ", "||": " or ", "!": " not "}
_SKIPPED = ("actions/setup-python@", "actions/checkout@", "aws-actions/")


class ActionsCache:
    """The entries that the action's cache steps have saved, in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.keys: list[str] = []
        self.rejected: list[str] = []
        self.visible: int | None = None  # How many entries jobs find that run at the same time.

        self._of: list[tuple[str, str]] = []

    def save(self, key: str, ref: str, path: str, folder: Path) -> None:
        """Save a folder for a ref, unless the key has an entry there: it can't be replaced."""
        assert folder.is_dir()
        assert len(key) <= 512
        assert "," not in key
        if (key, ref, path) in self._entries():
            self.rejected.append(key)
            return
        shutil.copytree(folder, self._folder / str(len(self.keys)), symlinks=True)
        self.keys.append(key)
        self._of.append((ref, path))

    def restore(self, keys: list[str], refs: list[str], path: str, folder: Path) -> None:
        """Copy the newest entry back whose key is, or begins with, the first that matches."""
        for ref in refs:
            entries = enumerate(self._entries()[: self.visible])
            mine = [(n, key) for n, (key, *of) in entries if of == [ref, path]]
            for wanted in keys:
                found = [n for n, key in mine if key == wanted] or [
                    n for n, key in mine if key.startswith(wanted)
                ]
                if found:
                    shutil.copytree(self._folder / str(found[-1]), folder, symlinks=True, dirs_exist_ok=True)
                    return

    def _entries(self) -> list[tuple[str, str, str]]:
        return [(key, *of) for key, of in zip(self.keys, self._of, strict=True)]


@dataclass
class Job:
    """What a job runs with: its checkout, GitHub's variables, what the repository has, and an environment."""

    checkout: Path
    cache: ActionsCache
    event: str = "push"
    ref: str = "refs/heads/main"
    base: str = ""
    run_id: str = "1"
    secrets: Mapping[str, str] = field(default_factory=dict)
    vars: Mapping[str, str] = field(default_factory=dict)
    matrix: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cancel_when: Path | None = None
    install: bool = False

    @property
    def contexts(self) -> dict[str, Any]:
        """What expressions can refer to."""
        return {
            "github": {"event_name": self.event, "ref": self.ref, "run_id": self.run_id},
            "runner": {"os": "Linux", "arch": "X64"}, "secrets": self.secrets, "vars": self.vars,
            "matrix": self.matrix,
        }  # fmt: skip

    @property
    def refs(self) -> list[str]:
        """The branches whose cache entries the job can restore, in GitHub's order."""
        return [ref for ref in (self.ref, self.base, "refs/heads/main") if ref]


@dataclass
class Done:
    """How a job or an action ended."""

    success: bool = True
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    summary: str = ""
    path: list[str] = field(default_factory=list)


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
        is_name = is_name and text != "toJSON"
        code += repr(_value(text, contexts)) if is_name else words.get(text, _WORDS.get(text, text))
    return eval(code, {"__builtins__": {}, "toJSON": json.dumps})


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
        done = run_action(replace(job, env={**job.env, **env}), **inputs)
    return done


def run_action(job: Job, **inputs: str) -> Done:
    """Run the action in a job; unless the job says `install`, with what is installed already."""
    spec = yaml.safe_load((ROOT / "action.yml").read_text())
    env = job.env
    named = {name.replace("_", "-"): value for name, value in inputs.items()}
    known = {name.lower() for name in named}  # GitHub compares names without their case, and keeps it.
    defaults = {n: i.get("default", "") for n, i in spec["inputs"].items()}
    given = {**{n: value for n, value in defaults.items() if n not in known}, **named}
    assert known <= defaults.keys()
    steps: dict[str, Any] = {}
    contexts = {**job.contexts, "inputs": given, "steps": steps, "env": env}
    done = Done()
    for step in spec["runs"]["steps"]:
        if step.get("uses", "").startswith(_SKIPPED) or (
            step["name"].startswith("Install") and not job.install
        ):
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
            job.cache.restore(keys, job.refs, values["path"], job.checkout / values["path"])
        else:
            assert "cache/save@" in step["uses"], step
            job.cache.save(values["key"], job.ref, values["path"], job.checkout / values["path"])
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
    for name in ("output", "summary", "path"):
        (temp / name).write_text("")
    (temp / "step.sh").write_text(step["run"])
    given = {k: filled(v, contexts, success=done.success) for k, v in step.get("env", {}).items()}
    process = subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(temp / "step.sh")],
        cwd=job.checkout / filled(step.get("working-directory", "."), contexts),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            **clean_environment(), "PATH": f"{BIN}:{os.environ['PATH']}", "RUNNER_TEMP": str(temp),
            "GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": job.event, "GITHUB_REF": job.ref,
            "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_WORKSPACE": str(job.checkout),
            "GITHUB_OUTPUT": str(temp / "output"), "GITHUB_STEP_SUMMARY": str(temp / "summary"),
            "GITHUB_PATH": str(temp / "path"), **env, **given,
        },
    )  # fmt: skip
    if job.cancel_when is not None and step.get("id") == "run":
        while not job.cancel_when.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # To the shell alone, as the runner does.
    done.log += process.communicate(timeout=300)[0]
    done.success = done.success and process.returncode == 0
    done.summary += (temp / "summary").read_text()
    done.path += (temp / "path").read_text().splitlines()
    return dict(_outputs((temp / "output").read_text().split("\n")))


def _outputs(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Read what a step has set: NAME=VALUE, or NAME<<END and the lines before END."""
    rest = iter(lines)
    for line in filter(None, rest):
        name, given, end = re.split(r"(=|<<)", line, maxsplit=1)
        yield name, end if given == "=" else "\n".join(iter(lambda end=end: next(rest), end))
