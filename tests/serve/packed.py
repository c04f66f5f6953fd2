"""The code of a package for SageMaker, loaded in this process as the container loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy_runner.server.handlers import Handlers
from deploy_runner.stages.package.entry_points import built_in
from deploy_runner.stages.package.sagemaker import own_modules

__all__ = ["loaded_code", "write_code"]


def loaded_code(folder: Path) -> Handlers:
    """Return the functions of an unpacked package with its model; no module of it stays imported."""
    with own_modules(folder):
        code = Handlers(folder)
        code.load()
    return code


def write_code(folder: Path) -> Path:
    """Put the built-in code beside a model; return its inference.py."""
    for name, file in built_in().items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    return folder / "code" / "inference.py"
