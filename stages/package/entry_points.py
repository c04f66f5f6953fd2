"""What starts a package's model in SageMaker's images: `code/` for both, Ray Serve's files at the root."""

from __future__ import annotations

import shutil
import symtable
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_runner.sdk import StageError

from ... import server
from ...server import devices, handlers, problems
from ...server.devices import Device
from . import image, raw

if TYPE_CHECKING:
    # So that the key holds the source of what is packed.
    from . import ray_deployment, sagemaker_inference  # noqa: F401

__all__ = ["built_in", "members", "requirements"]

_RAY = """\
# SageMaker's Ray Serve image starts this; its PyTorch image starts code/inference.py.
applications:
  - name: model
    route_prefix: /
    import_path: deployment:app
"""
_ENTRY = '''\
"""What SageMaker calls: the functions of script.py, and this package's own for those that it lacks."""

{imports}
'''


def built_in() -> dict[str, Path]:
    """Return the files of the built-in inference.py by their name in a package."""
    runtime = [Path(str(module.__file__)) for module in (server, devices, problems)]
    return {
        "code/inference.py": Path(__file__).with_name("sagemaker_inference.py"),
        "code/handlers.py": Path(handlers.__file__),
        **{f"code/runtime/{path.name}": path for path in runtime},
    }


def members(staged: Path, script: Path | None, lines: Sequence[str], wheels: Path | None) -> dict[str, Path]:
    """Write the files into `staged`; return them by their name in the archive.

    `script` is the user's, None for the built-in one; `lines` are those of requirements.txt. Raises
    StageError for a script that SageMaker's toolkit refuses, and for wheels that don't hold what is pinned.
    """
    found = built_in()
    entry = script or found["code/inference.py"]
    missing = _missing(entry)
    if missing:
        found["code/script.py"] = entry
        entry = staged / "inference.py"
        entry.write_text(_completed(found["code/script.py"], missing), "utf-8")
    found["code/inference.py"] = entry
    if wheels is not None:
        files = sorted(wheels.glob("*.whl"))
        _check_pins(lines, files)
        found |= {f"code/wheels/{path.name}": path for path in files}
        # pip reads the folder beside requirements.txt, wherever that lies.
        lines = ["--no-index", "--find-links wheels", *lines]
    (staged / "requirements.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (staged / "config.yaml").write_text(_RAY, "utf-8")
    shutil.copyfile(Path(__file__).with_name("ray_deployment.py"), staged / "deployment.py")
    found["code/requirements.txt"] = staged / "requirements.txt"
    return found | {name: staged / name for name in ("config.yaml", "deployment.py")}


def requirements(format_: str, io: Path | None, device: Device = "cpu") -> list[str]:
    """Return the lines of requirements.txt: the tested versions; numpy's and torch's are the image's.

    Raises StageError where what runs the model on the device isn't installed.
    """
    pinned = [image.runtime(format_, device)] if format_ == "onnx" else []
    pinned += [name for name in raw.libraries(io) if name != raw.FORMS]
    return ["numpy", *map(_pin, pinned), *raw.own_requirements(io)]


def _pin(name: str) -> str:
    try:
        return f"{name}=={version(name.partition('[')[0])}"
    except PackageNotFoundError:
        raise StageError(f"{name} is not installed, and the container gets the version that was tried here",
                         fix=f"pip install '{name}', or set `requirements`") from None  # fmt: skip


def _missing(script: Path) -> list[str]:
    """Return the functions that a script leaves to the toolkit's defaults."""
    names = _defined(script)
    if names is None:
        return []
    steps = [name for name in handlers.STEPS if name in names]
    if "transform_fn" in names and steps:
        raise StageError(
            f"{script.name} defines transform_fn and {steps[0]}, of which the container takes one",
            fix=f"remove transform_fn, or {' and '.join(steps)}",
        )
    needed = () if "transform_fn" in names else handlers.STEPS
    return [name for name in ("model_fn", *needed) if name not in names]


def _completed(script: Path, missing: Sequence[str]) -> str:
    every = ("model_fn", "transform_fn", *handlers.STEPS, *handlers.HOOKS)
    own = [name for name in every if name in (_defined(script) or ())]
    imports = [f"from handlers import {', '.join(sorted(missing))}"]
    imports += [f"from script import {', '.join(sorted(own))}"] if own else []
    return _ENTRY.format(imports="\n".join(imports))


def _defined(script: Path) -> set[str] | None:
    """Return the names that a module gives a value; None if it can't be parsed."""
    try:
        table = symtable.symtable(script.read_text("utf-8"), script.name, "exec")
    except (SyntaxError, ValueError):
        return None
    return {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}


def _check_pins(lines: Sequence[str], wheels: Sequence[Path]) -> None:
    """Raise StageError unless each `name==version` has its wheel. What it needs in turn isn't looked at."""
    there = set()
    for name, found, *_ in (path.name.split("-") for path in wheels):
        there |= {(_normal(name), found), (_normal(name), found.partition("+")[0])}
    for line in lines:
        name, pinned, wanted = (part.strip() for part in line.partition(";")[0].partition("=="))
        if pinned and "*" not in wanted and (_normal(name), wanted) not in there:
            raise StageError(
                f"wheels has none of {name} {wanted}, which requirements.txt asks for",
                fix=f"pip download --only-binary=:all: --python-version 3.13 -d WHEELS '{name}=={wanted}'",
            )


def _normal(name: str) -> str:
    return name.partition("[")[0].strip().lower().replace("_", "-").replace(".", "-")
