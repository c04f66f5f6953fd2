"""No page shows a command line that doesn't exist."""

from __future__ import annotations

import contextlib
import io

from deploy_runner.cli import build_parser
from deploy_runner.errors import UsageError
from tests.first_hour.pages import every_command


def test_every_command_line_of_the_docs_parses() -> None:
    parser = build_parser()
    refused = {}
    found = every_command()
    for place, words in found.items():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # Of --help.
            try:
                parser.parse_args(words)
            except UsageError as error:
                refused[place] = str(error)
    assert len(found) > 50
    assert refused == {}
