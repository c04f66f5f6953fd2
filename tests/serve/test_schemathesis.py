"""schemathesis sends what the description allows and what it doesn't: no server error, no undescribed answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve import models
from tests.serve.raw_inputs import PICTURES, ROWS, declared
from tests.serve.server import serving

NOT_SAID = "positive_data_acceptance"
"""That batches of two inputs have one length, and that bytes are a picture, no schema can say."""


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["fastapi", "flask"])
@pytest.mark.parametrize(
    ("model", "io"),
    [(models.scorer, {}), (models.tokens, {}), (models.scorer, ROWS), (models.colours, PICTURES)],
    ids=["tensors", "ids", "rows", "pictures"],
)
def test_the_description_holds(
    tmp_path: Path, model: Callable[[Path], Path], io: dict[str, Any], framework: str
) -> None:
    options: list[Any] = ["--server", framework]
    if io:
        options += ["--io", declared(tmp_path / "io", **io)]
    with serving(model(tmp_path / "model"), *options, folder=tmp_path) as server:
        command = ["run", f"{server.url}/openapi.json", "--max-examples", "100", "--checks", "all"]
        done = subprocess.run(
            [Path(sys.executable).parent / "schemathesis", *command, "--exclude-checks", NOT_SAID],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert not [event for event in server.events() if event["event"] == "model error"]
