"""Run the original module, and say in one sentence why it refuses its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, counted, first_line

from . import bundles, results
from .calls import Arguments, call
from .flattening import flatten_outputs, left_out
from .nesting import Path, shown
from .structures import Fields, hints_of, is_structure, unresolved
from .wording import user_line

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Eager"]

_SHAPES = (
    "set `example` to what forward() takes; of a dict or a list of tensors, nest the examples: "
    "`example: {batch: {x: {shape: […]}}}`"
)
_TYPES = (
    "set `example.dtype` to what forward() takes; for bfloat16, which data files can't contain, have the "
    "factory return a module around it that turns its input into the weights' type"
)


@dataclass(slots=True)
class Eager:
    """Runs a module under no_grad: arrays by input name → arrays by output name.

    Known once it ran: `dtypes`, the outputs' types in torch's words, which has more of them than NumPy;
    `kept`, which parts of the result are tensors, unless every exporter takes it; `left_out`, the others.
    """

    module: nn.Module
    names: list[str] | None
    arguments: Arguments | None = None
    dtypes: dict[str, str] = field(default_factory=dict)
    kept: list[int] | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Run. Raises StageError with the user's line where the module refuses the inputs."""
        import torch

        inputs = bundles.tensors(arrays, list(arrays))
        try:
            with torch.no_grad():
                result = call(self.module, dict(zip(arrays, inputs, strict=True)), self.arguments)
        except StageError:
            raise
        except Exception as error:
            said = f"{_told(error)}{user_line(error)}"
            raise StageError(f"the model fails on the example {_sizes(arrays)}: {said}",
                             fix=_advice(error, self.module, self.arguments or {})) from error  # fmt: skip
        flat = flatten_outputs(result, self.names)
        if self.dtypes and list(flat) != list(self.dtypes):
            raise _other_outputs(list(flat), list(self.dtypes), _sizes(arrays))
        if not self.dtypes:
            self.dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in flat.items()}
            self.kept, self.left_out = results.places(result), left_out(result)
        return {name: bundles.to_array(tensor) for name, tensor in flat.items()}


def _sizes(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())


def _other_outputs(found: list[str], before: list[str], sizes: str) -> StageError:
    """Say that the outputs are not those of the first inputs; a list of them may be one for each sample."""
    if len(found) == len(before):
        said = f"the model returns {', '.join(found)} for some inputs, {', '.join(before)} for others"
        return StageError(said, fix="have it return the same outputs always")
    return StageError(
        f"the model returns {counted(len(found), 'tensor')} for {sizes}, and {len(before)} for other inputs",
        fix="have the factory return a module around it that returns as many for every input, e.g. for one "
        "sample alone, with `dynamic: {}`",
    )


def _told(error: Exception) -> str:
    return f"KeyError {error}" if isinstance(error, KeyError) else first_line(error)


def _advice(error: Exception, module: nn.Module, arguments: Arguments) -> str:
    """Return what to write instead, as far as the error and forward()'s annotations tell."""
    from torch import Tensor

    asked = _asked_for(error)
    lacking = [path for name, tree in arguments.items() for path in _mappings(tree, (name,), asked)]
    if asked and lacking:
        return "add " + " or ".join(f"`example.{shown((*path, asked))}`" for path in lacking)
    for name, hint in hints_of(module.forward).items():
        said, tree = f"forward() takes {name} as {inspect.formatannotation(hint)}", arguments.get(name)
        if isinstance(tree, str) and is_structure(hint):
            return f"{said}: write `example: {{{name}: {_sketch(hint)}}}`"
        if tree is not None and not isinstance(tree, str) and hint is Tensor:
            return f"{said}: write `example: {{{name}: {{shape: […]}}}}`"
    for name, written in unresolved(module.forward).items():
        if isinstance(arguments.get(name), dict | list):
            return f"define {written}, of which forward() takes {name}, at the top level of its file"
    single = [name for name, tree in arguments.items() if isinstance(tree, str)]
    if asked and isinstance(getattr(error, "obj", None), Tensor) and len(single) == 1:
        nested = f"{{{single[0]}: {{{asked}: {{shape: […]}}}}}}"
        return f"if {single[0]} is made of several tensors, write `example: {nested}`"
    return _TYPES if "dtype" in str(error) else _SHAPES


def _asked_for(error: Exception) -> str:
    """Return the key that a mapping lacks, or the attribute that it or a tensor lacks."""
    from torch import Tensor

    if isinstance(error, KeyError):
        return error.args[0] if error.args and isinstance(error.args[0], str) else ""
    found = isinstance(error, AttributeError) and isinstance(getattr(error, "obj", None), (Fields, Tensor))
    return (getattr(error, "name", "") or "") if found else ""


def _mappings(tree: Any, path: Path, lacking: str) -> Iterator[Path]:
    """Yield the places of the mappings that don't have a key."""
    if isinstance(tree, str):
        return
    if isinstance(tree, dict) and lacking not in tree:
        yield path
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _mappings(child, (*path, key), lacking)


def _sketch(hint: Any) -> str:
    """Return what the example of such an argument looks like."""
    listed = hint in (list, tuple) or any(word in str(hint).lower() for word in ("list[", "tuple["))
    return "[{shape: […]}]" if listed else "{NAME: {shape: […]}}"
