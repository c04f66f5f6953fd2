"""Find where a model's own Python looks at the values of its data, and inputs that make it choose.

A trace, and every exporter built on one, keeps what such a line chose for the example. Whether another
input would choose otherwise can't be seen by trying a few, so every look is found: below autograd each
operator is watched, what comes of the inputs is followed, and the line that takes a value out is noted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import GateError

from . import bundles
from .bundles import Bundle, Case
from .compare import Model, largest
from .flattening import named_arrays
from .precision import eps_of

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

_THROUGH = ("/torch/_dynamo/", "/torch/_compile.py", "/torch/_ops.py", "/torch/_tensor.py", "/torch/utils/",
            "/torch/_library/", "/torch/overrides.py")  # fmt: skip
"""What is between the user's line and an operator without being somebody's model."""


@dataclass(frozen=True, slots=True)
class Read:
    """A value that a line of the user's code took out of the data: True or False where it chooses."""

    where: str
    value: bool | complex


@dataclass(frozen=True, slots=True)
class Branches:
    """The lines that look at the data, and cases that make them choose otherwise than before."""

    reads: list[Read] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def sides(self) -> dict[str, str]:
        """Return FILE:LINE → which sides of its choice the cases have taken."""
        seen: dict[str, set[bool]] = {}
        for read in self.reads:
            if isinstance(read.value, bool):
                seen.setdefault(read.where, set()).add(read.value)
        return {
            where: "both" if len(values) == 2 else f"{str(*values).lower()} only"
            for where, values in seen.items()
        }


def exercise(bundle: Bundle, module: nn.Module | None = None) -> Branches:
    """Run the bundle's model on its cases, and where it looks at its data on further inputs.

    Of these the ones are kept that make a line choose what no case did, and two that change numbers.
    """
    module, usual = module or bundle.module(), bundle.cases[0]
    reads = [read for case in bundle.cases for read in _watched(module, bundle, case.inputs)[0]]
    if not reads:
        return Branches()
    found = Branches(reads)
    seen = {(read.where, read.value) for read in reads}
    for index, inputs in enumerate(probes(bundle)):
        try:
            reads, outputs = _watched(module, bundle, inputs)
        except Exception:  # An input of our own making may be none that the model takes.
            continue
        new = {(read.where, read.value) for read in reads if isinstance(read.value, bool)} - seen
        if new or index < 2:
            name = f"probe{index}"
            found.cases.append(Case(name, inputs, outputs, allowed(bundle, outputs), usual.batch))
            found.reads.extend(reads)
            seen |= new
    return found


def check(found: Branches, run: Model) -> None:
    """Compare a converted model on the cases that choose otherwise.

    Raises GateError that names the line.
    """
    for case in found.cases:
        if name := differing(case.outputs, run(case.inputs), case.allowed):
            lines = ", ".join(sorted({read.where for read in found.reads}))
            raise GateError(f"the result differs from the original for data unlike the example's, "
                            f"on which {lines} depends: {name!r} of {case.name}")  # fmt: skip


def differing(
    expected: Mapping[str, Any], actual: Mapping[str, Any], limits: Mapping[str, float]
) -> str | None:
    """Return the name of an output that is another one, or None."""
    import numpy as np

    for name, array in expected.items():
        if array.shape != actual[name].shape or not np.allclose(
            actual[name], array, rtol=0, atol=limits[name], equal_nan=True
        ):
            return name
    return None


def allowed(bundle: Bundle, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Return a thousandth of the largest value: unusual inputs lose digits, another branch has others.

    Types of less than four digits are allowed 16 units of their rounding.
    """
    usual = bundle.cases[0].outputs
    return {
        port.name: max(1e-3, 16 * (eps_of(port.dtype) or 0.0))
        * max(largest(usual[port.name]), largest(outputs[port.name]))
        for port in bundle.outputs
    }


def probes(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Yield inputs of the first case's sizes with other signs, sizes and orders of values."""
    import numpy as np

    first = bundle.cases[0].inputs
    for change in (np.negative, np.zeros_like, *(_times(factor) for factor in (100.0, 1e4, -1e4, 0.01))):
        yield {name: _changed(array, change) for name, array in first.items()}
    for seed in range(8):
        generator = np.random.default_rng(seed)
        yield {name: _drawn(array, generator) for name, array in first.items()}


def _times(factor: float) -> Any:
    return lambda array: array * array.dtype.type(factor)


def _changed(array: np.ndarray[Any, Any], change: Any) -> np.ndarray[Any, Any]:
    """Change floats; of whole numbers, which are often indices, none leaves the range that was seen."""
    import numpy as np

    if array.dtype.kind == "f":
        return np.asarray(change(array), array.dtype)
    if array.dtype.kind == "b":
        return ~array if change is np.negative else np.zeros_like(array)
    return (array.max() + array.min() - array) if change is np.negative else np.full_like(array, array.min())


def _drawn(array: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    import numpy as np

    if array.dtype.kind == "f":
        centre = generator.normal(0, 3)
        return np.asarray(generator.normal(centre, 1, array.shape), array.dtype)
    return np.asarray(generator.choice(array.flatten(), array.shape), array.dtype)


def _watched(
    module: nn.Module, bundle: Bundle, arrays: Mapping[str, Any]
) -> tuple[list[Read], dict[str, Any]]:
    """Run the module; return what its lines read, and its outputs."""
    try:
        return _run_watched(module, bundle, arrays)
    except Exception:
        if "torch._dynamo" not in sys.modules:
            raise
    import torch

    with torch.compiler.set_stance("force_eager"):  # torch.cond would compile what watches it.
        return _run_watched(module, bundle, arrays)


def _run_watched(
    module: nn.Module, bundle: Bundle, arrays: Mapping[str, Any]
) -> tuple[list[Read], dict[str, Any]]:
    import torch

    inputs = bundles.tensors(arrays, bundle.input_names)
    watch = _watch(inputs)
    with torch.no_grad(), watch:
        result = module(*inputs)
    return watch.reads, named_arrays(result, bundle.output_names)


def _watch(inputs: tuple[Any, ...]) -> Any:
    """Return a context that follows what comes of `inputs`; its `reads` are what was looked at."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.weak import WeakIdKeyDictionary

    value, equal = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default

    class Watch(TorchDispatchMode):
        supports_higher_order_operators = True  # A torch.cond is kept whole: what it chooses by is no look.

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.reads: list[Read] = []
            self._data = WeakIdKeyDictionary(dict.fromkeys(inputs, True))

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # Keeping dynamo away means importing it, which takes seconds.

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            given = _tensors((args, kwargs))
            if not any(tensor in self._data for tensor in given):
                return result
            if func in (value, equal) and (where := _user_line()):
                choice = func is equal or given[0].dtype == torch.bool
                self.reads.append(Read(where, bool(result) if choice else result))
            schema = getattr(func, "_schema", None)
            arguments = zip(args, schema.arguments if schema else (), strict=False)
            written = [argument for argument, spec in arguments if _is_written(spec)]
            for tensor in _tensors((result, written)):
                self._data[tensor] = True
                if tensor._base is not None:
                    self._data[tensor._base] = True
            return result

    return Watch()


def _tensors(value: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _user_line() -> str:
    """Return FILE:LINE of the code that called the operator, if it is the user's and no package's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _THROUGH):
        frame = frame.f_back
    name = frame.f_code.co_filename
    return "" if name.startswith(("/", "<")) else f"{name}:{frame.f_lineno}"
