"""An exported program as a module whose forward() takes its tensors, and what it declares of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from . import calls
from .axes import Axis

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Declared", "as_module", "axes_of", "forget_paths", "inputs_of"]

_PATHS = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


@dataclass(frozen=True, slots=True)
class Declared:
    """An input: in `dims` a number is a fixed size, a text the symbol of one that may vary.

    `shape` is that of the program's own example, `values` that example itself if it has one.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    shape: tuple[int, ...]
    values: Any = None

    def __str__(self) -> str:
        """Say what is taken, e.g. `float32 of shape [s0, 3]`."""
        return f"{self.dtype} of shape [{', '.join(map(str, self.dims))}]"


def as_module(program: torch.export.ExportedProgram, *, guarded: bool = False) -> nn.Module:
    """Return a program as a module; its forward() takes the tensors by the names that `inputs_of` gives.

    What the program was exported with that is no tensor keeps its value. It refuses sizes that it wasn't
    exported for if `guarded`.
    """
    from torch import nn
    from torch.utils import _pytree

    inner = program.module(check_guards=guarded)
    if not guarded:
        _make_plain(inner)
    for part in inner.modules():  # What replaces them refuses; they would change no operator.
        for name in ("train", "eval"):
            vars(part).pop(name, None)
    spec = program.module_call_graph[0].signature.in_spec
    given = [(argument.name, getattr(argument, "value", None)) for argument in _arguments(program)]
    names = [argument.name for argument in _tensors(program)]

    def own(self: Any, *tensors: Any) -> Any:
        known = dict(zip(names, tensors, strict=True))
        args, kwargs = _pytree.tree_unflatten([known.get(name, value) for name, value in given], spec)
        return self.program(*args, **kwargs)

    module: nn.Module = type("Program", (nn.Module,), calls.forwarding(own, names))()
    module.program = inner
    return module


def _make_plain(inner: Any) -> None:
    """Take out checks of sizes and types, and take sizes as Python does: so that it can be traced."""
    import torch

    aten = torch.ops.aten
    checks = {aten._assert_scalar.default, aten._assert_tensor_metadata.default,
              aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default}  # fmt: skip
    for node in list(inner.graph.nodes):
        if node.target in checks:
            inner.graph.erase_node(node)
        elif node.target is aten.sym_size.int:
            node.target = torch.Tensor.size
    inner.graph.eliminate_dead_code()
    inner.recompile()
    inner._forward_pre_hooks.clear()
    inner._forward_pre_hooks_with_kwargs.clear()


def forget_paths(program: torch.export.ExportedProgram) -> None:
    """Take out what the exporter notes about where a node came from: it differs between two folders."""
    for node in program.graph.nodes:
        for name in _PATHS:
            node.meta.pop(name, None)


def _arguments(program: torch.export.ExportedProgram) -> Iterator[Any]:
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            yield spec.arg


def _tensors(program: torch.export.ExportedProgram) -> Iterator[Any]:
    """Yield the arguments that are tensors. Raises StageError for numbers that may vary."""
    for argument in _arguments(program):
        kind = type(argument).__name__
        if kind == "TensorArgument":
            yield argument
        elif kind != "ConstantArgument":
            raise StageError(f"the program's input {argument.name!r} is a number that may vary, not a tensor",
                             fix="export it with that number fixed, or as a tensor")  # fmt: skip


def inputs_of(program: torch.export.ExportedProgram) -> list[Declared]:
    """Return the inputs that are tensors, in the order of the module's forward()."""
    import torch
    from torch.utils import _pytree

    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    leaves: list[Any] = _pytree.tree_leaves(program.example_inputs) if program.example_inputs else []
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    arguments = list(_tensors(program))
    examples: list[Any] = tensors if len(tensors) == len(arguments) else [None] * len(arguments)
    ranges = axes_of(program)
    found = []
    for argument, example in zip(arguments, examples, strict=True):
        tensor = values[argument.name]
        dims = tuple(size if isinstance(size, int) else str(size.node.expr) for size in tensor.shape)
        shape = tuple(example.shape) if example is not None else tuple(_size(n, ranges) for n in dims)
        found.append(Declared(argument.name, str(tensor.dtype).removeprefix("torch."), dims, shape, example))
    return found


def _size(dim: int | str, ranges: Mapping[str, Axis]) -> int:
    if isinstance(dim, int):
        return dim
    return ranges[dim].nearest(2) if dim in ranges else 2


def axes_of(program: torch.export.ExportedProgram) -> dict[str, Axis]:
    """Return symbol → the sizes that it may have; also of multiples of one, e.g. `8*s3`."""
    found: dict[str, Axis] = {}
    for symbol, bounds in program.range_constraints.items():
        factor, base = symbol.as_coeff_Mul()
        step = int(factor)
        inner = program.range_constraints.get(base, bounds) if step > 1 else bounds
        scale = step if inner is not bounds else 1
        low, high = max(1, _whole(inner.lower, 1)) * scale, _whole(inner.upper, None)
        found[str(symbol)] = Axis(str(symbol), step, low, None if high is None else high * scale)
    return found


def _whole(bound: Any, endless: Any) -> Any:
    """Return a bound as a number; what is infinite, or as large as torch's numbers get, is endless."""
    text = str(bound)
    return int(text) if text.lstrip("-").isdecimal() and abs(int(text)) < 1 << 31 else endless
