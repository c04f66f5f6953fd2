"""A store, and a folder in which nothing can be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy_runner.store.cas import Store


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder: a store that takes what a relative name leads to must not take the project."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "home")
