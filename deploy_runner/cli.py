"""The command line: each verb is a class in `commands`; this finds it, parses, and calls it.

Exit codes: 0 done, 1 a stage failed or a gate rejected its result, 2 bad input or usage, 3 a remote
conflict, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, cast

from .commands.options import Verb, fill, given
from .commands.reading import Declared
from .errors import DeployRunnerError, Problem, SpecError, UsageError, closest

if TYPE_CHECKING:
    import argparse

    from .commands.parsing import Parser

__all__ = ["build_parser", "main", "start"]

_NEW_OBJECTS = 50_000
"""How many containers are made before the collector looks at them; Python's own number is 700."""

_MODULES = {
    "run": "running",
    "plan": "planning",
    "validate": "planning",
    "explain": "planning",
    "graph": "planning",
    "show": "results",
    "get": "results",
    "diff": "results",
    "status": "live",
    "rollback": "live",
    "promote": "live",
    "cache": "cache",
    "stages": "stage_types",
    "schema": "stage_types",
    "init": "scaffold",
    "convert": "convert",
    "verify": "signed",
    "serve": "serving",
    "ui": "ui",
    "doctor": "doctor",
    "completion": "completion",
}


def start() -> int:
    """Run the command line as a process of its own.

    What a start makes is used until the end: to look for garbage among it, 70 times as often, and once more
    as the process ends, takes a fifth of a run that has nothing to do.
    """
    if sys.argv[1:2] != ["serve"]:  # There a request would wait for the collection of so many.
        gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    try:
        return main()
    finally:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback reaches the user."""
    argv = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        if argv[:1] == ["--version"]:
            from .commands.installation import installation

            print(installation())
            return 0
        return _parse(argv)()
    except KeyboardInterrupt:
        print("interrupted; finished artifacts are kept, run again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DeployRunnerError, OSError, ImportError) as error:
        if "--debug" in argv:
            raise
        said = _as_ours(error)
        _complain(said, argv)
        return said.exit_code


def build_parser(only: str = "") -> argparse.ArgumentParser:
    """Return the parser of all verbs; docs/cli.md is generated from it. With `only` that one has options."""
    from .commands.parsing import Parser
    from .types import VERSION

    parser = Parser(
        prog="deploy-runner",
        description="From a trained PyTorch checkpoint to a verified, deployed model.",
        epilog="Exit codes: 0 done, 1 a stage failed or a gate rejected its result, 2 bad input or usage, "
        "3 a remote conflict, 130 interrupted.",
    )
    parser.add_argument(
        "--version", action="version", version=f"deploy-runner {VERSION}",
        help="print the version and where it is installed from, and exit",
    )  # fmt: skip
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name in _MODULES:
        if only not in ("", name):
            verbs.add_parser(name)
            continue
        about = _about(_class(name))
        said = about[0].lower() + about[1:].rstrip(".")
        _fill(verbs.add_parser(name, help=said, description=about), _class(name))
    return parser


def _parse(argv: Sequence[str]) -> Verb:
    """Return the verb with its options.

    Only what the verb that is named declares is looked at: all verbs together take longer than planning does.
    """
    if not argv or argv[0] not in _MODULES:
        first = argv[0] if argv else "-"
        if first in ("-h", "--help"):
            build_parser().parse_args([first])
        listed = "`deploy-runner --help` lists the verbs"
        if first.startswith("-"):
            raise UsageError("the verb comes first", fix=listed)
        raise UsageError(f"there is no verb {first!r}", fix=closest(first, _MODULES) or listed)
    name, *rest = argv
    verb = _class(name)
    declared = Declared()
    _fill(cast("argparse.ArgumentParser", declared), verb)
    values = declared.read(rest)
    if values is None:
        values = _parser(name, verb).read(rest)
    return given(verb, values)


def _parser(name: str, verb: type[Verb]) -> Parser:
    from .commands.parsing import Parser

    parser = Parser(prog=f"deploy-runner {name}", description=_about(verb))
    _fill(parser, verb)
    return parser


def _complete() -> None:
    """Answer a shell that asks what may follow, and end."""
    from .commands.completing import complete, verb_in

    verb = verb_in(os.environ.get("COMP_LINE", ""))
    complete(build_parser(verb if verb in _MODULES else ""), verb)


def _class(name: str) -> type[Verb]:
    found: type[Verb] = getattr(import_module(f".commands.{_MODULES[name]}", __package__), name.capitalize())
    return found


def _about(verb: type[Verb]) -> str:
    return str(verb.__doc__).partition("\n")[0]


def _fill(parser: argparse.ArgumentParser, verb: type[Verb]) -> None:
    fill(parser, verb)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _as_ours(error: DeployRunnerError | OSError | ImportError) -> DeployRunnerError:
    if isinstance(error, DeployRunnerError):
        return error
    if isinstance(error, ImportError):
        return DeployRunnerError(f"a part of Python or deploy-runner can't be loaded: {error}")
    if isinstance(error.filename, (str, os.PathLike)):
        from .store.files import store_error

        return store_error(error, error.filename, "check its permissions, or choose another place")
    return DeployRunnerError(str(error.strerror or error))


def _complain(error: DeployRunnerError, argv: Sequence[str]) -> None:
    problems = error.problems if isinstance(error, SpecError) else (Problem(error.message, fix=error.fix),)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from .report.github import show_problems

        show_problems(problems, sys.stderr, os.environ if argv[0] == "run" else {})
    if "--json" in argv:
        import json

        said = [problem._asdict() for problem in problems]
        print(json.dumps({"error": str(error), "exit_code": error.exit_code, "problems": said, "stages": {}}))
    prefix = f"{len(problems)} problems:\n" if len(problems) > 1 else "error: "
    print(f"{prefix}{error}", file=sys.stderr)
