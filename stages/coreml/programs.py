"""The model as a program that coremltools reads, its result flattened, compared with the original."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from deploy_runner.sdk import GateError

from ..model import results
from ..model.bundles import Bundle
from ..model.compare import Model, compare
from ..torch import torchscript
from ..torch.export import dimension, refusal
from ..torch.trace import trace

Ranges = Mapping[str, tuple[int, int]]
"""Label → its smallest and largest size."""


def traced(bundle: Bundle, ranges: Ranges) -> Any:
    """Return a trace. Raises StageError where what the model does depends on its inputs."""
    import torch

    trace(bundle)
    with torch.no_grad(), torchscript.unfused(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(_flat(bundle.module()), bundle.example(), check_trace=False)
        _compare(bundle, torchscript.runner(program, bundle.input_names, bundle.output_names))
    return program


def exported(bundle: Bundle, ranges: Ranges) -> Any:
    """Return an exported program in the operators that coremltools reads. Raises StageError."""
    import torch

    dims = {label: dimension(bundle.axes[label], largest) for label, (_, largest) in ranges.items()}
    shapes = tuple({axis: dims[label] for axis, label in p.dynamic.items()} or None for p in bundle.inputs)
    try:
        with torch.no_grad(), torchscript.unfused(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _flat(bundle.exportable()), bundle.example(), dynamic_shapes=(shapes,) if dims else None
            ).run_decompositions({})
    except Exception as error:
        raise refusal(error, [largest for _, largest in ranges.values()]) from error
    _compare(bundle, torchscript.runner(program.module(), bundle.input_names, bundle.output_names))
    return program


def _flat(module: Any) -> Any:
    from torch import nn

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> Any:
            return results.tensors(self.model(*inputs))

    return Flat().eval()


def _compare(bundle: Bundle, run: Model) -> None:
    found = compare(bundle.cases, run)
    if found.excess > 0:
        said = f"the program to convert differs from the original by {found.beyond(None, None)}"
        raise GateError(f"{said}; worst at {found.worst}")
