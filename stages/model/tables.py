"""Find how many rows the tables have that a module's inputs look up: ids are drawn from all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import bundles
from .bundles import Port
from .calls import call
from .examples import Example, fill_of, noise
from .filling import longest_sample
from .precision import fits_twice

if TYPE_CHECKING:
    from torch import nn

__all__ = ["with_ranges"]

_LOOK_UPS = (
    "aten.embedding.default",
    "aten._embedding_bag.default",
    "aten._embedding_bag_forward_only.default",
)


def with_ranges(module: nn.Module, given: Sequence[tuple[Port, Example]]) -> list[tuple[Port, Example]]:
    """Return the inputs, with the rows of its table as the `high` of each that has none and looks one up.

    A copy of the module is run for it. Where that fails, or with such numbers, they are left as they are.
    """
    open_ends = [
        port.name for port, example in given
        if example.high is None and "int" in example.dtype and fill_of(port.name, example) == "random"
    ]  # fmt: skip
    if not open_ends or not fits_twice(module):
        return list(given)
    try:
        apart = bundles.frozen(copy.deepcopy(module))
        found = _rows(apart, given)
        ranged = [
            (port, example.model_copy(update={"high": found[port.name]}))
            if port.name in open_ends and found.get(port.name, 0) > 2 else (port, example)
            for port, example in given
        ]  # fmt: skip
        _rows(apart, ranged)
    except Exception:  # Some modules can't be copied; why one can't be run is said where it has to.
        return list(given)
    return ranged


def _rows(module: nn.Module, given: Sequence[tuple[Port, Example]]) -> dict[str, int]:
    """Run the module; return the rows of the smallest table that each input looks up."""
    import torch

    arrays = _arrays(given)
    inputs = dict(zip(arrays, bundles.tensors(arrays, list(arrays)), strict=True))
    watch = _watch({tensor.untyped_storage().data_ptr(): name for name, tensor in inputs.items()})
    with torch.no_grad(), watch:
        call(module, inputs, bundles.arguments_of(port for port, _ in given))
    rows: dict[str, int] = watch.rows
    return rows


def _arrays(given: Sequence[tuple[Port, Example]]) -> Mapping[str, Any]:
    ports = [port for port, _ in given]
    return {
        port.name: noise(port, example, port.shape, (0, place), longest_sample(port, ports, _shape, None))
        for place, (port, example) in enumerate(given)
    }


def _shape(port: Port) -> Sequence[int]:
    return port.shape


def _watch(names: Mapping[int, str]) -> Any:
    """Return a context whose `rows` are those of the tables that inputs look up, by the inputs' memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.rows: dict[str, int] = {}

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # Keeping dynamo away means importing it, which takes seconds.

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(func) in _LOOK_UPS and (name := names.get(args[1].untyped_storage().data_ptr())):
                self.rows[name] = min(self.rows.get(name, args[0].shape[0]), args[0].shape[0])
            return func(*args, **(kwargs or {}))

    return Watch()
