"""Write the pages that are generated from the code: `make docs`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy_runner.cli import build_parser
from deploy_runner.pipeline.schema import describe_stage_types, json_schema
from deploy_runner.report.stage_types import markdown

HERE = Path(__file__).parent


def pages() -> Mapping[str, str]:
    """Return the generated files' content by name."""
    root = HERE.parent
    return {
        "stages.md": markdown(describe_stage_types(root)),
        "cli.md": "\n".join(_command_line()) + "\n",
        "pipeline.schema.json": json.dumps(json_schema(root), indent=2, ensure_ascii=False) + "\n",
    }


def _command_line() -> Iterator[str]:
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    yield "# Command line"
    yield ""
    yield "Generated from the parser."
    yield from _help(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        yield ""
        yield f"## {name}"
        yield from _help(verb)


def _help(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield ""
    yield "```text"
    yield parser.format_help().strip()
    yield "```"


def main() -> None:
    """Write every page that has changed."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
