"""What the newcomers share: one environment, into which everything was installed that the README says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.first_hour.newcomer import environment
from tests.first_hour.pages import extras


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment made by the README, with what people's own training scripts import."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return environment(shared / "newcomers", f"deploy-runner{extras()}")
