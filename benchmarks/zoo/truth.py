"""What a model really computes at sizes of the zoo's own choice, and whether a file computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .entries import CASES, Entry, made
from .isolated import reason

__all__ = ["check", "outputs_of", "write"]

EPS = float(np.finfo(np.float32).eps)


def outputs_of(module: nn.Module, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module; return its tensors, those of a mapping by their keys."""
    with torch.no_grad():
        result = module(**{name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    leaves, _ = _pytree.tree_flatten_with_path(result)
    kept = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    names = [str(getattr(path[0], "key", "")) if len(path) == 1 else "" for path, _ in kept]
    return {name or f"output_{place}": leaf.numpy() for place, (name, (_, leaf)) in
            enumerate(zip(names, kept, strict=True))}  # fmt: skip


def write(entry: Entry, module: nn.Module, folder: Path) -> dict[str, Any]:
    """Write inputs, outputs and limits of every case: 8 times the model's own error, and 64 roundings."""
    exact = copy.deepcopy(module).double()
    for index, case in enumerate(CASES):
        arrays = made(entry, case)
        outputs = outputs_of(module, arrays)
        wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}
        try:
            true = outputs_of(exact, wide)
        except Exception:  # Some models name a type of their own.
            true = {}
        stored = {f"in/{name}": array for name, array in arrays.items()}
        for name, array in outputs.items():
            stored[f"out/{name}"] = array
            stored[f"limit/{name}"] = np.float64(_limit(array, true.get(name)))
        np.savez(folder / f"case{index}.npz", **stored)
    return {"outputs": list(outputs), "parameters": sum(p.numel() for p in module.parameters())}


def _limit(array: Any, true: Any) -> float:
    if array.dtype.kind != "f":
        return 0.0
    scale = float(np.abs(array).max(initial=0.0))
    if true is None or true.shape != array.shape or true.dtype != np.float64:
        return 256 * EPS * scale
    return 8 * float(np.abs(true - array).max(initial=0.0)) + 64 * EPS * scale


def check(file: Path, folder: Path, *, by_name: bool) -> dict[str, Any]:
    """Run a file by onnxruntime alone at every case; say of each `right`, how wrong, or why it fails."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = {}
    for index, case in enumerate(CASES):
        with np.load(folder / f"case{index}.npz") as stored:
            arrays = dict(stored)
        try:
            found[case] = _compared(session, arrays, by_name=by_name)
        except Exception as error:
            found[case] = f"fails: {reason(error)}"
    return {"cases": found}


def _compared(session: Any, arrays: Mapping[str, Any], *, by_name: bool) -> str:
    given = {name[3:]: array for name, array in arrays.items() if name.startswith("in/")}
    expected = {name[4:]: array for name, array in arrays.items() if name.startswith("out/")}
    wanted = [value.name for value in session.get_inputs()]
    like = next(iter(given.values()))
    feeds = {name: given[name] if name in given else np.zeros_like(like) for name in wanted}
    names = [value.name for value in session.get_outputs()]
    results = session.run(None, feeds)
    if by_name and set(names) <= set(expected):
        pairs = list(zip(names, results, strict=True))
    elif len(results) == len(expected):
        pairs = list(zip(expected, results, strict=True))
    else:
        return f"wrong: {len(results)} outputs, not {len(expected)}"
    for name, actual in pairs:
        if said := _difference(name, actual, expected[name], float(arrays[f"limit/{name}"])):
            return said
    return "right"


def _difference(name: str, actual: Any, expected: Any, limit: float) -> str:
    if actual.shape != expected.shape:
        return f"wrong: {name} has the shape {actual.shape}, not {expected.shape}"
    off = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    if not off <= limit:
        return f"wrong: {name} is off by {off:.2g} where {limit:.2g} is allowed"
    return ""
