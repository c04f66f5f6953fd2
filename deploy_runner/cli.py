"""The command line: verbs only; each parses, calls, prints.

Exit codes: 0 done, 1 a stage failed or a gate rejected its result, 2 bad input or usage, 3 a remote
conflict, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .commands.arguments import DEFAULT, build_parser
from .errors import DeployRunnerError, SpecError, UsageError

if TYPE_CHECKING:
    from .api import Pipeline

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback reaches the user."""
    args = _parse(argv)
    try:
        return _VERBS[args.verb](args)
    except DeployRunnerError as error:
        if args.debug:
            raise
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished artifacts are kept, run again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        _complain(DeployRunnerError(_os_sentence(error)))
        return 1
    except ImportError as error:
        if args.debug:
            raise
        _complain(DeployRunnerError(f"a part of Python or deploy-runner can't be loaded: {error}"))
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; arguments may stand before, between and after the options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown or (rest and not hasattr(args, "names")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if isinstance(getattr(args, "names", None), list):
        args.names += rest
    elif rest:
        if len(rest) > 1 or args.names is not None:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.names = rest[0]
    return args


def _os_sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _complain(error: DeployRunnerError) -> None:
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from .report.github import annotation

        if isinstance(error, SpecError):
            for p in error.problems:
                print(annotation("error", p.message, file=p.file, line=p.line, column=p.column))
        else:
            print(annotation("error", str(error)))
    count = len(error.problems) if isinstance(error, SpecError) else 1
    prefix = f"{count} problems:\n" if count > 1 else "error: "
    print(f"{prefix}{error}", file=sys.stderr)


def _is_pipeline(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name or os.path.isfile(name)


def _path_and_names(args: argparse.Namespace) -> tuple[str, list[str]]:
    names = args.names
    if names is None or isinstance(names, str):
        return names or DEFAULT, []
    if names and _is_pipeline(names[0]):
        return names[0], names[1:]
    return DEFAULT, list(names)


def _load(args: argparse.Namespace) -> tuple[Pipeline, list[str]]:
    from .api import load

    path, names = _path_and_names(args)
    return load(path, config=args.config, sets=args.sets), names


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False))


def _run(args: argparse.Namespace) -> int:
    from .commands.verbs import run

    path, names = _path_and_names(args)
    return run(path, names, args)


def _plan(args: argparse.Namespace) -> int:
    from .commands.verbs import plan

    pipeline, names = _load(args)
    return plan(pipeline, names, args)


def _validate(args: argparse.Namespace) -> int:
    pipeline, _ = _load(args)
    graph = pipeline.graph
    if args.json:
        _print_json({"valid": True, "name": graph.name, "stages": list(graph.stages)})
    else:
        print(f"{graph.pipeline}: valid, {len(graph.stages)} stages")
    return 0


def _explain(args: argparse.Namespace) -> int:
    from .commands.verbs import explain

    pipeline, names = _load(args)
    return explain(pipeline, names, args)


def _graph(args: argparse.Namespace) -> int:
    from .pipeline.render import render

    pipeline, _ = _load(args)
    print(render(pipeline.graph, args.format))
    return 0


def _status(args: argparse.Namespace) -> int:
    from .commands.verbs import status

    pipeline, names = _load(args)
    return status(pipeline, names, args)


def _rollback(args: argparse.Namespace) -> int:
    from .commands.live import rollback

    pipeline, name = _load_one(args, "rollback")
    return _print_done(args, rollback(pipeline, name, args.to, log=_log_to_stderr))


def _promote(args: argparse.Namespace) -> int:
    from .commands.live import promote

    pipeline, name = _load_one(args, "promote")
    return _print_done(args, promote(pipeline, name, args.status, log=_log_to_stderr))


def _load_one(args: argparse.Namespace, verb: str) -> tuple[Pipeline, str]:
    pipeline, names = _load(args)
    if len(names) != 1:
        raise UsageError(
            f"{verb} needs the name of one push stage", fix=f"`deploy-runner {verb} STAGE --config FILE`"
        )
    return pipeline, names[0]


def _log_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _print_done(args: argparse.Namespace, said: str) -> int:
    if args.json:
        _print_json({"done": said})
    else:
        print(said)
    return 0


def _show(args: argparse.Namespace) -> int:
    from .commands.results import show

    path, names = _path_and_names(args)
    return show(path, names, args)


def _get(args: argparse.Namespace) -> int:
    from .commands.results import get

    path, names = _path_and_names(args)
    return get(path, names, args)


def _diff(args: argparse.Namespace) -> int:
    from .commands.results import diff

    return diff(_path_and_names(args)[0], args)


def _cache(args: argparse.Namespace) -> int:
    from .commands.verbs import cache

    return cache(_path_and_names(args)[0], args)


def _stages(args: argparse.Namespace) -> int:
    from .commands.verbs import stages

    return stages(args)


def _schema(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from .pipeline.schema import json_schema

    print(json.dumps(json_schema(Path.cwd()), indent=2, ensure_ascii=False))
    return 0


def _init(args: argparse.Namespace) -> int:
    from .commands.scaffold import init

    shape = _numbers(args.shape) if args.shape else None
    print(init(args.checkpoint, args.folder, factory=args.factory, shape=shape))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--shape {text} is not a list of whole numbers", fix="e.g. --shape 1,3,32,32"
        ) from None


def _convert(args: argparse.Namespace) -> int:
    from .commands.verbs import convert

    return convert(args, _numbers(args.shape))


def _verify(args: argparse.Namespace) -> int:
    from .commands.signed import verify

    found = verify(args.address, key=args.key, certificates=args.certificate)
    if args.json:
        _print_json({"verified": True, **found._asdict()})
        return 0
    for name, digest in found.files.items():
        print(f"{digest}  {name}")
    made = f", made by deploy-runner {found.runner} from {', '.join(found.sources)}" if found.runner else ""
    print(f"verified: {len(found.files)} files{made}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    from .commands.serving import serve

    names = args.names
    if len(names) > 1:
        return serve(names[0], names[1:], args)
    return serve(DEFAULT, names, args)


def _doctor(args: argparse.Namespace) -> int:
    from .commands.doctor import examine

    pipeline, _ = _load(args)
    checks = examine(pipeline.graph, os.environ)
    if args.json:
        _print_json([check.as_dict() for check in checks])
    else:
        for check in checks:
            print(check)
    return 0 if all(check.ok for check in checks) else 2


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "validate": _validate,
    "explain": _explain,
    "graph": _graph,
    "show": _show,
    "get": _get,
    "diff": _diff,
    "status": _status,
    "rollback": _rollback,
    "promote": _promote,
    "cache": _cache,
    "stages": _stages,
    "schema": _schema,
    "init": _init,
    "convert": _convert,
    "verify": _verify,
    "doctor": _doctor,
    "serve": _serve,
}
