"""Programs of torch: which kind a file is, and the module that one is. Loading TorchScript or .pt2 runs code.

TorchScript keeps its code as text, which torch compiles; torch.export's loader falls back to an ordinary
unpickler and evaluates the expressions of sizes. So nothing is loaded here without the caller's trust.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import StageError, first_line

from . import records
from .calls import arguments
from .exported import as_module

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Kind",
    "converted",
    "example_line",
    "exported",
    "kind_among",
    "kind_of",
    "module_of",
    "refuse_other_than_tensors",
    "refuse_without_trust",
    "script",
    "write_clean_script",
]

Kind = Literal["torchscript", "pt2", "aot"]

_NAMES: dict[Kind, str] = {
    "torchscript": "a TorchScript program",
    "pt2": "a torch.export program (.pt2)",
    "aot": "a package of AOTInductor (.pt2)",
}
_PROGRAM = re.compile(r"(?:^|/)models/[^/]+\.json$|^serialized_exported_program\.json$")
_COMPILED = re.compile(r"(?:^|/)data/aotinductor/")
_DEVICE = re.compile(rb'torch\.device\("(?!cpu)[\w:]+"\)')
_OPERATOR = re.compile(r"(?:Unknown builtin op: |failed to resolve torch\.ops\.)(\w+(?:::|\.)\w+)")
_ELSEWHERE = re.compile(rb'("type":\s*)"(?:cuda|xpu|mps)"(,\s*"index":\s*)(?:\d+|null)')


def kind_among(names: Iterable[str]) -> Kind | None:
    """Return what an archive with these records is, None for none of them."""
    names = list(names)
    if any(_COMPILED.search(name) for name in names):
        return "aot"
    if any(_PROGRAM.search(name) for name in names):
        return "pt2"
    if any(name.partition("/")[2] == "constants.pkl" for name in names):
        return "torchscript"
    return None


def kind_of(path: Path) -> Kind | None:
    """Return what a file is by the names of its records; nothing of it is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            return kind_among(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None


def refuse_without_trust(kind: Kind, *, trust: bool, instead: str, but: str = "") -> None:
    """Raise StageError without trust, before anything is loaded.

    `instead` is what else could be done, `but` what the file was expected to be.
    """
    if not trust:
        raise StageError(
            f"the file is {_NAMES[kind]}{but}: loading it runs code",
            fix=f"{instead}; or, if you trust it, set `trust: true` on the stage",
        )


def module_of(path: Path, *, guarded: bool = False) -> nn.Module:
    """Return the module that a program is; one of torch.export refuses other sizes if `guarded`.

    Raises StageError where it can't be loaded.
    """
    if kind_of(path) == "pt2":
        return as_module(exported(path), guarded=guarded)
    return script(path)


def converted(module: torch.jit.ScriptModule, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """Return a TorchScript program as a module that torch.export takes. Raises StageError where it can't."""
    from torch._export.converter import TS2EPConverter

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return as_module(TS2EPConverter(module, example).convert())
    except Exception as error:  # The converter fails in as many ways as there are operators.
        raise StageError(
            f"the TorchScript program can't be converted for torch.export: {first_line(error)}",
            fix="use torch.trace, or onnx.export with `exporter: torchscript`",
        ) from error


def script(path: Path) -> torch.jit.ScriptModule:
    """Return a TorchScript program on the CPU. Raises StageError for one that is damaged or too new."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return]
    except Exception as error:  # A damaged program takes torch anywhere.
        _refuse_unknown_operator(error)
        raise _damaged("TorchScript", error, "save it again with this torch") from None


def refuse_other_than_tensors(program: torch.jit.ScriptModule) -> None:
    """Raise StageError where TorchScript requires something that is no tensor."""
    forward: Any = program.forward
    for argument in forward.schema.arguments[1:]:
        if not argument.has_default_value() and str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise StageError(
                f"the TorchScript program requires {argument.name!r} of type {argument.type}, and only "
                "tensors can be given",
                fix="script a module around it that takes tensors",
            )


def example_line(program: torch.jit.ScriptModule) -> str:
    """Return what is to be written of the examples of a program's inputs."""
    return f"example: {{{', '.join(f'{name}: {{shape: […]}}' for name in arguments(program))}}}"


def _damaged(kind: str, error: Exception, fix: str) -> StageError:
    import torch

    said = f"the {kind} program can't be loaded by torch {torch.__version__}: {first_line(error)}"
    return StageError(said, fix=fix)


def write_clean_script(path: Path, made: Path) -> None:
    """Write a TorchScript archive again, without source paths, and with code that makes tensors on the CPU.

    The trace of a module on a GPU names that wherever it makes a tensor. Raises StageError for one that is
    damaged.
    """
    try:
        with made.open("wb") as file:
            records.rewrite(path, file, leave_out=records.DEBUG, changed=_script_on_cpu)
    except RuntimeError as error:
        raise _damaged("TorchScript", error, "copy it again from where it was saved") from None


def _script_on_cpu(name: str, record: bytes) -> bytes:
    return _DEVICE.sub(b'torch.device("cpu")', record) if name.endswith(".py") else record


def exported(path: Path) -> torch.export.ExportedProgram:
    """Return an exported program on the CPU. Raises StageError for one that this torch can't read."""
    import torch

    _refuse_other_schema(path)
    load = torch.load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load = partial(load, map_location="cpu")  # The loader of .pt2 has no such option.
            return _loaded(_program_on_cpu(path))
    except Exception as error:
        _refuse_unknown_operator(error)
        raise _damaged("exported", error, "export it again with this torch") from None
    finally:
        torch.load = load


def _loaded(place: Any) -> torch.export.ExportedProgram:
    """Load a program; torch.export.load, which reads older archives too, hides why one can't be."""
    import torch
    from torch.export.pt2_archive._package import is_pt2_package, load_pt2

    whole = place.getvalue() if isinstance(place, io.BytesIO) else str(place)
    if not is_pt2_package(whole):
        return torch.export.load(place)
    found = load_pt2(place).exported_programs
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} programs: {', '.join(found)}")
    return next(iter(found.values()))


def _refuse_unknown_operator(error: Exception) -> None:
    """Raise StageError for an operator that some library would have registered."""
    if found := _OPERATOR.search(str(error)):
        raise StageError(
            f"the program uses the operator {found[1].replace('.', '::')}, which torch doesn't have",
            fix="name what registers it as `operators`, e.g. `operators: torchvision.ops:nms`",
        ) from None


def _program_on_cpu(path: Path) -> Any:
    """Return the path, or an archive in which what was on another device is on the CPU."""
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name) for name in archive.namelist() if name.endswith(".json")]
    if not any(_ELSEWHERE.search(text) for text in texts):
        return path
    made = io.BytesIO()
    records.rewrite(path, made, changed=_exported_on_cpu)
    made.seek(0)
    return made


def _exported_on_cpu(name: str, record: bytes) -> bytes:
    return _ELSEWHERE.sub(rb'\g<1>"cpu"\g<2>null', record) if name.endswith(".json") else record


def _refuse_other_schema(path: Path) -> None:
    """Raise StageError for a program that another torch wrote in a form that this one can't read."""
    import torch
    from torch._export.serde.schema import SCHEMA_VERSION

    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if _PROGRAM.search(n)), None)
        try:
            found = json.loads(archive.read(name)) if name else {}
            major = found["schema_version"]["major"]
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile):
            raise StageError("the exported program is damaged: its models/*.json can't be read",
                             fix="copy it again from where it was exported") from None  # fmt: skip
    if major != SCHEMA_VERSION[0]:
        made_by = found.get("torch_version") or "another version"
        raise StageError(
            f"the program was exported by torch {made_by} (schema {major}); torch {torch.__version__} reads "
            f"schema {SCHEMA_VERSION[0]}",
            fix="export it again with this torch, or use checkpoint.state_dict and model.prepare",
        )
