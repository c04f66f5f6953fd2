"""The command line's verbs and options; docs/cli.md is generated from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

__all__ = ["DEFAULT", "build_parser"]

DEFAULT = "pipeline.yaml"
_FORMATS = (
    "safetensors", "full", "torchscript", "script", "pt2", "onnx", "fp16", "int8", "ptl", "pte", "sagemaker",
)  # fmt: skip
_BY_ID = "by its number or the start of its id"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; docs/cli.md is generated from it."""
    parser = argparse.ArgumentParser(
        prog="deploy-runner",
        description="From a trained PyTorch checkpoint to a verified, deployed model.",
        epilog="Exit codes: 0 done, 1 a stage failed or a gate rejected its result, 2 bad input or usage, "
        "3 a remote conflict, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(debug=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_run(verbs)
    _add_questions(verbs)
    _add_results(verbs)
    _add_remote(verbs)
    _add_store(verbs)
    _add_project(verbs)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        from .. import __version__

        print(f"deploy-runner {__version__}")
        parser.exit()


if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def _verb(verbs: _Verbs, name: str, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(verb=name)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _pipeline_options(parser: argparse.ArgumentParser, *, stages: str = "") -> None:
    if stages:
        parser.add_argument(
            "names",
            nargs="*",
            metavar="PIPELINE STAGE",
            help=f"the pipeline (default: {DEFAULT}), then {stages}",
        )
    else:
        parser.add_argument("names", nargs="?", metavar="PIPELINE", help=f"default: {DEFAULT}")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="an overlay merged over the pipeline; may be repeated "
        "(default: configs/dry-run.yaml, if there is one)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="PATH=VALUE",
        help="set one value after all overlays, e.g. vars.opset=20; may be repeated",
    )


def _json_option(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_run(verbs: _Verbs) -> None:
    parser = _verb(verbs, "run", "run the stages that are out of date")
    _pipeline_options(parser, stages="the stages to run, with their dependencies (default: all)")
    _json_option(parser, "print one JSON object at the end of standard output, progress on stderr")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    parser.add_argument("--force", action="store_true", help="run the named stages even on a hit")
    parser.add_argument("--cpu", type=_positive, metavar="N", help="cores to use (default: all)")
    parser.add_argument("--memory", type=_size, metavar="SIZE", help="memory to use, e.g. 8GiB")
    parser.add_argument(
        "--keep-workdirs", action="store_true", help="keep the workdir of each stage that ran"
    )
    parser.add_argument(
        "--require-sandbox", action="store_true",
        help="run nothing if this machine can't confine stages fully (see `doctor`)",
    )  # fmt: skip
    parser.add_argument("--log", action="store_true", help="show the stages' log lines")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def _add_questions(verbs: _Verbs) -> None:
    plan = _verb(verbs, "plan", "show what a run would do, and why")
    _pipeline_options(plan, stages="the stages to plan (default: all)")
    plan.add_argument(
        "--values", action="store_true", help="show every resolved value and where it came from"
    )
    _json_option(plan)
    validate = _verb(verbs, "validate", "check a pipeline and report all its errors")
    _pipeline_options(validate)
    _json_option(validate)
    explain = _verb(verbs, "explain", "explain why a stage is a hit or a miss")
    _pipeline_options(explain, stages="the stages to explain")
    _json_option(explain)
    graph = _verb(verbs, "graph", "draw the stages and their edges")
    _pipeline_options(graph)
    graph.add_argument("--format", choices=("text", "mermaid", "dot"), default="text")


def _add_results(verbs: _Verbs) -> None:
    show = _verb(verbs, "show", "show the pipeline's last run, or one of its stages")
    _pipeline_options(show, stages="the stage to show")
    show.add_argument("--run", default="", metavar="ID", help=f"another run, {_BY_ID}")
    show.add_argument("--runs", action="store_true", help="list the pipeline's runs")
    show.add_argument("--log", action="store_true", help="print what the stage's worker printed")
    show.add_argument("--replay", action="store_true", help="print the command that repeats the stage alone")
    _json_option(show)
    get = _verb(verbs, "get", "copy an output of a stage that is up to date out of the store")
    _pipeline_options(get, stages="STAGE or STAGE.OUTPUT")
    get.add_argument("--run", default="", metavar="ID", help=f"use the output of this run instead, {_BY_ID}")
    get.add_argument(
        "-o", "--to", metavar="PATH", help="target path (default: its own name, in the current folder)"
    )
    diff = _verb(verbs, "diff", "compare two runs of the pipeline: figures, outputs, states")
    _pipeline_options(diff)
    diff.add_argument("--old", default="", metavar="ID", help="default: the run before")
    diff.add_argument("--new", default="", metavar="ID", help="default: the last run")
    _json_option(diff)


def _add_remote(verbs: _Verbs) -> None:
    status = _verb(verbs, "status", "compare the deployment with the pipeline")
    _pipeline_options(status, stages="the push stages to check (default: all)")
    _json_option(status)
    rollback = _verb(verbs, "rollback", "restore what a push deployed before")
    _pipeline_options(rollback, stages="the push stage")
    rollback.add_argument(
        "--to", default="", metavar="DIGEST", help="the start of a digest (default: the one before)"
    )
    _json_option(rollback)
    promote = _verb(verbs, "promote", "approve the version that a push registered")
    _pipeline_options(promote, stages="the push stage")
    promote.add_argument(
        "--status", default="Approved", choices=("Approved", "Rejected", "PendingManualApproval"),
        help="the approval status to set (default: Approved)",
    )  # fmt: skip
    _json_option(promote)


def _add_store(verbs: _Verbs) -> None:
    cache = _verb(verbs, "cache", "verify and clean up the store, pin runs")
    cache.add_argument(
        "action",
        choices=("verify", "gc", "pin", "unpin"),
        help="verify every object, remove what no kept run refers to, keep or stop keeping a run",
    )
    cache.add_argument(
        "--run", default="", metavar="ID", help="pin, unpin: the run (default: the pipeline's last)"
    )
    _pipeline_options(cache)
    cache.add_argument(
        "--keep-runs",
        type=_positive,
        metavar="N",
        help="gc: how many runs of each pipeline to keep (default: 10)",
    )
    cache.add_argument("--dry-run", action="store_true", help="gc: show what would be removed")
    _json_option(cache)


def _add_project(verbs: _Verbs) -> None:
    stages = _verb(verbs, "stages", "list the stage types, or describe one")
    stages.add_argument("type", nargs="?", metavar="TYPE")
    _json_option(stages)
    _verb(verbs, "schema", "print the JSON Schema of a pipeline, for editors")
    init = _verb(verbs, "init", "start a project from a checkpoint")
    init.add_argument("checkpoint", help="the trained checkpoint")
    init.add_argument("folder", nargs="?", default=".", help="target folder (default: the current one)")
    init.add_argument("--factory", metavar="FILE.py:NAME", help="the function that builds your nn.Module")
    init.add_argument("--shape", metavar="1,3,224,224", help="the shape of one example input")
    convert = _verb(verbs, "convert", "convert a checkpoint with a generated pipeline")
    convert.add_argument("checkpoint", help="the trained checkpoint")
    required = {
        "--to": ("onnx,int8,ptl", f"any of {', '.join(_FORMATS)}"),
        "--factory": ("FILE.py:NAME", "the function that builds your nn.Module"),
        "--shape": ("1,3,224,224", "the shape of one example input"),
    }
    for flag, (metavar, text) in required.items():
        convert.add_argument(flag, required=True, metavar=metavar, help=text)
    optional = {
        "--dtype": ("TYPE", "float32", "the example's element type"),
        "--calibration": (
            "PATH",
            None,
            "samples for int8: an .npz (also used as reference cases) or pictures",
        ),
        "--output": ("FOLDER", "converted", "the folder for the results"),
        "--pipeline": ("FILE", "convert.yaml", "the pipeline to write"),
    }
    for flag, (metavar, default, text) in optional.items():
        said = f"{text} (default: {default})" if default else text
        convert.add_argument(flag, default=default, metavar=metavar, help=said)
    _json_option(convert, "print one JSON object at the end of standard output, progress on stderr")
    convert.add_argument("--log", action="store_true", help="show the stages' log lines")
    convert.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    verify = _verb(verbs, "verify", "check a signed package, offline")
    verify.add_argument(
        "address", metavar="PATH|URI",
        help="the output `signed` of package.sign, or a copy of it: a folder or a tar archive, "
        "file://, s3://bucket/prefix or hf://owner/name[@revision][/folder]",
    )  # fmt: skip
    verify.add_argument("--key", metavar="PUBLIC.pem", help="the signer's public key")
    verify.add_argument(
        "--certificate", action="append", default=[], metavar="ROOT.pem",
        help="a root certificate to trust instead of a key; may be repeated",
    )  # fmt: skip
    _json_option(verify)
    _add_serve(verbs)
    doctor = _verb(verbs, "doctor", "check that everything a pipeline needs is installed and set")
    _pipeline_options(doctor)
    _json_option(doctor)


def _add_serve(verbs: _Verbs) -> None:
    from importlib import import_module

    serve = _verb(verbs, "serve", "serve a model over HTTP, with batching and hot reload")
    stages = "STAGE or STAGE.OUTPUT that is up to date; or the path of an ONNX artifact, "
    _pipeline_options(serve, stages=f"{stages}a model.tar.gz, a TorchScript file or a container's context")
    serve.add_argument(
        "--run", default="", metavar="ID", help=f"use the output of this run instead, {_BY_ID}"
    )
    import_module("deploy_runner.server.options").add_options(serve)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    from ..pipeline.spec import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
