"""The model bundle: what `model.prepare` makes and every conversion starts from.

A folder with

    bundle.json          how to build the module, its inputs and outputs
    weights.safetensors  the weights
    code/                the factory's source files, by their path in the project
    reference.npz        inputs and eager outputs: `CASE/in/NAME`, `CASE/out/NAME`

(that of `model.onnx` has model.onnx in the place of factory, weights and code, that of `model.program`
program.pt or program.pt2)
so that later stages need nothing of the project, and their keys hold all of it by one digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, first_line, load_code

from . import initial, loading, programs, tensor_files
from .axes import Axis, rows
from .calls import Arguments, adapted, call, narrowed
from .nesting import Path as Place
from .nesting import tree_of
from .npz import read_arrays, write_arrays
from .wording import user_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: `shape` as in the example, `dynamic` maps an axis to its name.

    `batch` is the axis of the samples, None where it has none. `path` leads to an input in the arguments of
    forward(): `("batch", "features", 0)`; nothing where the input is an argument.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: Mapping[int, str]
    batch: int | None = None
    path: Place = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the port as JSON."""
        dynamic = {str(axis): name for axis, name in self.dynamic.items()}
        described: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "dynamic": dynamic,
            "batch": self.batch,
        }
        return described | ({"path": list(self.path)} if len(self.path) > 1 else {})


@dataclass(frozen=True, slots=True)
class Case:
    """Reference inputs with the outputs that the eager module gave for them."""

    name: str
    inputs: Arrays
    outputs: Arrays
    allowed: Mapping[str, float] = field(default_factory=dict)
    """How far each output may be from the reference, by `_precision`; one left out: see `compare`."""
    batch: Mapping[str, int | None] = field(default_factory=dict)
    """`in/NAME` or `out/NAME` → the axis of the samples, None where it has none; one left out: 0."""

    def sample(self, name: str, array: Any, index: int) -> Any:
        """Return one sample of the array `in/NAME` or `out/NAME`, whole where it has no such."""
        axis = self.batch.get(name, 0)
        if axis is None or axis >= array.ndim or array.shape[axis] <= index:
            return array
        return rows(array, axis, slice(index, index + 1)).copy()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    folder: Path
    factory: str
    kwargs: Mapping[str, Any]
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    allowed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    kept: Sequence[int] | None = None
    """Which parts of forward()'s result `module()` returns as a tuple: exporters don't take the whole."""
    program: str = ""
    """The file that holds the module, where no factory builds it: TorchScript, or an exported program."""
    operators: str = ""
    """What registers operators that the program uses, as a `Code` parameter names it."""
    unsaved: str = ""
    """The digest of what the module has beside its weights; nothing where it has to be built as it is."""
    hub_config: Mapping[str, Any] | None = None
    """What the class saves as config.json, where it is one of huggingface_hub's ModelHubMixin."""

    @property
    def is_onnx(self) -> bool:
        """Say whether the model is the folder's model.onnx, not a module."""
        return not self.factory and not self.program

    @property
    def is_script(self) -> bool:
        """Say whether the model is TorchScript: its module has a schema, and no Python."""
        return self.program.endswith(".pt")

    @property
    def weights_bytes(self) -> int:
        """Return the size of the file that holds the weights."""
        return (self.folder / (self.program or "weights.safetensors")).stat().st_size

    @property
    def batch_sized(self) -> bool:
        """Say whether some input has an axis of samples."""
        return any(port.batch is not None for port in self.inputs)

    @property
    def input_names(self) -> list[str]:
        """Return the names of the inputs, in order."""
        return [port.name for port in self.inputs]

    @property
    def arguments(self) -> Arguments:
        """Return forward()'s arguments, and the inputs that they are made of."""
        return arguments_of(self.inputs)

    @property
    def output_names(self) -> list[str]:
        """Return the names of the flattened outputs."""
        return [port.name for port in self.outputs]

    @cached_property
    def cases(self) -> list[Case]:
        """Return the reference cases; the first two have different batch sizes."""
        cases = read_cases(self.folder / "reference.npz")
        batch = {f"in/{port.name}": port.batch for port in self.inputs}
        batch |= {f"out/{port.name}": self._rows_of(port) for port in self.outputs}
        return [replace(case, allowed=self.allowed.get(case.name, {}), batch=batch) for case in cases]

    def _rows_of(self, output: Port) -> int | None:
        """Return the axis of what is judged one by one: samples, or rows where the batch is fixed."""
        return output.batch if self.batch_sized or not output.shape else 0

    def module(self) -> nn.Module:
        """Return the module, eval mode, on the CPU; its forward() takes the inputs by position, in order."""
        own = self.own_module()
        if self.is_script:
            return narrowed(own, self.input_names)  # type: ignore[no-any-return]
        return adapted(own, self.arguments, kept=self.kept)

    def need_python(self, instead: str) -> None:
        """Raise StageError where the model is a program: it has operators, no layers of Python classes."""
        if self.program:
            said = f"the model is a program ({self.program}), which has no layers of Python classes"
            raise StageError(said, fix=f"use {instead}")

    def exportable(self) -> nn.Module:
        """Return the module as torch.export takes it: of TorchScript what torch's converter makes of it."""
        module: Any = self.module()
        return programs.converted(module, self.example()) if self.is_script else module

    def own_module(self) -> nn.Module:
        """Return the module as its factory builds it, with its weights, eval mode, on the CPU.

        Raises StageError for a bundle of model.onnx.
        """
        if self.is_onnx:
            raise StageError(
                "the model is an .onnx file: it has no PyTorch module, which this stage converts",
                fix="use the onnx.* stages, or model.prepare with the model's weights and factory",
            )
        if self.program:
            if self.operators:
                self._load(self.operators)
            return frozen(programs.module_of(self.folder / self.program))
        module = self._undrawn() or self._built()
        if loading.is_lazy(module):
            self._run_once(module)
        return module

    def _built(self) -> nn.Module:
        factory: Callable[..., nn.Module] = self._load(self.factory)
        module = build_module(factory, self.kwargs, self.factory)
        loading.load(module, tensor_files.read(self.folder / "weights.safetensors"))
        return frozen(module)

    def _undrawn(self) -> nn.Module | None:
        """Return the module built without initial weights, or None where it differs by them."""
        if not self.unsaved:
            return None
        try:
            with initial.undrawn():
                module = self._built()
        except Exception:  # The factory may look at its weights; if it fails otherwise, it will say so again.
            return None
        return module if initial.unsaved(module) == self.unsaved else None

    def _load(self, name: str) -> Any:
        code = self.folder / "code"
        return load_code(name, {p.relative_to(code).as_posix(): p for p in sorted(code.rglob("*.py"))})

    def _run_once(self, module: nn.Module) -> None:
        """Let lazy layers become ordinary ones, which exporters know."""
        import torch

        with torch.no_grad():
            call(module, dict(zip(self.input_names, self.example(), strict=True)), self.arguments)

    def example(self, case: int = 0) -> tuple[torch.Tensor, ...]:
        """Return a case's inputs as tensors, in forward()'s order."""
        return tensors(self.cases[case].inputs, self.input_names)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle. Raises StageError where the folder isn't one."""
    try:
        data = json.loads((folder / "bundle.json").read_text("utf-8"))
        ports = {part: [_port(given) for given in data[part]] for part in ("inputs", "outputs")}
        allowed = {
            case: {name: given["allowed"] for name, given in outputs.items()}
            for case, outputs in data.get("precision", {}).items()
        }
        axes = {given["label"]: Axis(**given) for given in data["axes"]}
        built = not data.get("onnx") and not data.get("program")
        factory, kwargs = (data["factory"], data["kwargs"]) if built else ("", {})
        return Bundle(
            folder, factory, kwargs, ports["inputs"], ports["outputs"], allowed, axes,
            kept=data.get("kept"), program=Path(data.get("program", "")).name,
            operators=data.get("operators", ""), unsaved=data.get("unsaved", ""),
            hub_config=data.get("hub_config"),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StageError(
            "the input is not a model bundle", fix="use the output `model` of model.prepare or model.onnx"
        ) from None


def arguments_of(inputs: Iterable[Port]) -> Arguments:
    """Return forward()'s arguments, and the inputs that they are made of."""
    return tree_of({port.name: port.path or (port.name,) for port in inputs})


def _port(given: Mapping[str, Any]) -> Port:
    dynamic = {int(axis): name for axis, name in given["dynamic"].items()}
    return Port(given["name"], given["dtype"], tuple(given["shape"]), dynamic, given["batch"],
                tuple(given.get("path", ())))  # fmt: skip


def build_module(factory: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> nn.Module:
    """Call a factory. Raises StageError where it fails, or doesn't return an nn.Module."""
    from torch import nn

    try:
        module = factory(**kwargs)
    except ModuleNotFoundError:
        raise  # Which module, and who imports it, is said where every stage's errors are.
    except Exception as error:
        said = f"{name} fails: {type(error).__name__}: {first_line(error)}{user_line(error)}"
        raise StageError(said, fix="check its `kwargs`; it may not read files or download") from error
    if not isinstance(module, nn.Module):
        raise StageError(f"{name} returned {type(module).__name__}, not an nn.Module",
                         fix="return the model itself from the factory")  # fmt: skip
    return module


def frozen(module: nn.Module) -> nn.Module:
    """Return the module in eval mode, on the CPU, without gradients."""
    module.eval().cpu()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def tensors(arrays: Arrays, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Return arrays as tensors in fresh, contiguous memory: odd strides upset exporters."""
    import torch

    return tuple(torch.from_numpy(arrays[name].copy(order="C")).clone() for name in names)


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array; NumPy has no bfloat16, whose values are float32's exactly."""
    import torch

    tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def tiled(array: Any, port: Port, sizes: Mapping[str, int], *, shift: int = 0) -> Any:
    """Return an input cut or repeated to the sizes of its labels; `shift` turns the batch by so many."""
    import numpy as np

    for axis, label in port.dynamic.items():
        start = shift if axis == port.batch else 0
        array = np.take(array, range(start, start + sizes[label]), axis=axis, mode="wrap")
    return np.ascontiguousarray(array) if array.ndim else array


def write_bundle(folder: Path, data: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Write what describes a bundle, and its reference cases."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "bundle.json").write_text(text + "\n", "utf-8")
    write_cases(folder / "reference.npz", cases)


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write the reference arrays."""
    write_arrays(path, case_arrays(cases))


def case_arrays(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the arrays of cases by the name that they have in a file."""
    return {
        f"{case.name}/{part}/{name}": array
        for case in cases
        for part, group in (("in", case.inputs), ("out", case.outputs))
        for name, array in group.items()
    }


def read_cases(path: Path) -> list[Case]:
    """Read the reference arrays back, in the order they were written."""
    return cases_of(read_arrays(path))


def cases_of(arrays: Mapping[str, Any]) -> list[Case]:
    """Return the cases whose arrays have these names."""
    grouped: dict[str, dict[str, dict[str, Any]]] = {}
    for key, array in arrays.items():
        case, part, name = key.split("/", 2)
        grouped.setdefault(case, {"in": {}, "out": {}})[part][name] = array
    return [Case(name, parts["in"], parts["out"]) for name, parts in grouped.items()]
