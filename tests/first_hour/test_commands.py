"""No page shows a command line that doesn't exist."""

from __future__ import annotations

import contextlib
import io

from deploy_runner.cli import build_parser
from tests.first_hour.pages import every_command


def test_every_command_line_of_the_docs_parses() -> None:
    parser = build_parser()
    refused = {}
    found = every_command()
    for place, words in found.items():
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                parser.parse_args(words)
            except SystemExit as end:
                if end.code:
                    refused[place] = said.getvalue().splitlines()[-1]
    assert len(found) > 50
    assert refused == {}
