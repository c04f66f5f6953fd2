"""What Tab offers in a shell: verbs, options, and the names in this folder's pipelines, runs and stage types.

A shell waits for it at each press of Tab: nothing is compiled, imported or written for it. Stages come from
the YAML's keys, the instances of a matrix and the outputs from the last run's record.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeployRunnerError
from .options import DEFAULT_PIPELINE, Selection

if TYPE_CHECKING:
    from ..engine.runs import RunRecord

__all__ = ["complete", "script", "verb_in"]

_WITH_OUTPUTS = ("get", "serve")
_YAML = (".yaml", ".yml")
_RECORDS = 5
"""Of the newest runs, in which names are looked for."""
_USES = re.compile(r"""^\s+uses(?:: *[\w\[\]]+)? *= *["']([\w.-]+)["']""", re.MULTILINE)


def script(shell: str) -> str:
    """Return what a shell has to read once: bash, zsh or fish."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["deploy-runner"], shell=shell)


def verb_in(line: str) -> str:
    """Return the finished second word of a command line, where there is one."""
    with suppress(ValueError):
        words = shlex.split(line + "|")
        return words[1] if len(words) > 2 else ""
    return ""


def complete(parser: argparse.ArgumentParser, verb: str) -> None:
    """Answer the shell, and end the process."""
    import argcomplete

    completers: dict[str, Callable[..., Iterable[str]]] = {
        "words": _words_of(verb), "config": _yaml_files, "sets": _nothing, "type": _types,
        "run": _runs, "old": _runs, "new": _runs,
    }  # fmt: skip
    for action in _actions(parser):
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for nested in action.choices.values():
                yield from _actions(nested)


def _nothing(**given: Any) -> list[str]:
    return []


def _words_of(verb: str) -> Callable[..., Iterable[str]]:
    """Return what completes the pipeline and its stages for a verb."""

    def words(
        prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **given: Any
    ) -> list[str]:
        before = parsed_args.words if isinstance(parsed_args.words, list) else []
        stages_too = action.nargs == "*" and getattr(parsed_args, "action", "pull") == "pull"
        found = [] if before else list(_yaml_files(prefix))
        if stages_too:
            selection = Selection(tuple(before), tuple(parsed_args.config))
            found += (name for name in _names(selection, verb) if name not in before)
        return found

    return words


def _yaml_files(prefix: str, **given: Any) -> Iterator[str]:
    folder, _, start = prefix.rpartition("/")
    head = f"{folder}/" if "/" in prefix else ""
    with suppress(OSError), os.scandir(head or ".") as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                continue
            if entry.is_dir():
                yield f"{head}{entry.name}/"
            elif entry.name.endswith(_YAML):
                yield head + entry.name


def _names(selection: Selection, verb: str) -> Iterator[str]:
    """Yield the stages of a pipeline, and where it is wanted their outputs."""
    from ..pipeline.loader import load_yaml
    from .outputs import rows_of

    with suppress(DeployRunnerError, OSError, ValueError, AttributeError, KeyError):
        tree = load_yaml(Path(selection.path).read_text("utf-8"), selection.path)
        known = dict.fromkeys(map(str, tree.value["stages"].value))
        records = list(islice(_records(selection.path, selection.config), _RECORDS))
        ran = [(record, id_) for record in records for id_ in record.stages if id_.partition("[")[0] in known]
        yield from dict.fromkeys((*known, *(id_ for _, id_ in ran)))
        if verb in _WITH_OUTPUTS:
            yield from dict.fromkeys(row.name for record, id_ in ran for row in rows_of(record, [id_]))


def _records(path: str, config: tuple[str, ...]) -> Iterator[RunRecord]:
    from ..api import place_of
    from ..engine.runs import recorded_runs

    home, files = place_of(path, config)
    if (home / "secret").is_file() or os.environ.get("DEPLOY_RUNNER_CACHE_KEY"):
        yield from recorded_runs(home, files)


def _runs(parsed_args: argparse.Namespace, **given: Any) -> list[str]:
    words = getattr(parsed_args, "words", None) or [DEFAULT_PIPELINE]
    selection = Selection((words,) if isinstance(words, str) else tuple(words), tuple(parsed_args.config))
    return [record.id for record in _records(selection.path, selection.config)]


def _types(**given: Any) -> list[str]:
    found = set()
    for folder in (Path(__file__).parent.parent / "stages", Path("stages")):
        for file in folder.rglob("*.py"):
            found.update(_USES.findall(file.read_text("utf-8", errors="replace")))
    return sorted(found)
