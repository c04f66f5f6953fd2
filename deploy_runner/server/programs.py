"""Run a model: ONNX by onnxruntime, TorchScript and what AOTInductor compiled by torch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from . import aot
from .artifact import Artifact
from .devices import Device, onnx_session, torch_device
from .ports import DATATYPES, Arrays, Port, Ports, with_batches
from .problems import Invalid, ModelError, Problem, UnfitArtifact
from .reasons import first_line

__all__ = ["Program", "open_program"]


class Program(Protocol):
    """A loaded model. `run` raises Invalid for values that the model can't take, else ModelError."""

    platform: str
    inputs: Ports
    outputs: Ports

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Return the outputs by name."""
        ...


def open_program(artifact: Artifact, threads: int, device: Device = "cpu") -> Program:
    """Load a model. Raises UnfitArtifact where its runtime can't."""
    return _KINDS[artifact.format](artifact, threads, device)


class _Onnx:
    platform = "onnxruntime_onnx"

    def __init__(self, artifact: Artifact, threads: int, device: Device) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # Errors are raised; a line for each would block on a full pipe.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnx_session(str(artifact.file), options, device)
        except UnfitArtifact:
            raise
        except Exception as error:  # onnxruntime's own classes share no other base.
            raise UnfitArtifact(f"onnxruntime can't load the model: {first_line(error)}") from None
        inputs = Ports(_port(node) for node in self._session.get_inputs())
        outputs = Ports(_port(node) for node in self._session.get_outputs())
        self.inputs, self.outputs = _described(artifact, inputs, outputs)
        self._names = self.outputs.names
        self._unfit = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        try:
            return dict(zip(self._names, self._session.run(self._names, arrays), strict=True))
        except self._unfit as error:
            raise Invalid(_refusal(error)) from None
        except Exception as error:
            raise ModelError(Problem(("model",), f"the model failed: {first_line(error)}")) from error


def _described(artifact: Artifact, inputs: Ports, outputs: Ports) -> tuple[Ports, Ports]:
    """Return an ONNX model's ports with the axes of samples that its description says, or its own labels."""
    said = {port.name: port.batch for port in artifact.inputs}
    if not all(port.name in said for port in inputs):
        return with_batches(inputs, outputs)
    said |= {port.name: port.batch for port in artifact.outputs}
    return Ports(_placed(p, said[p.name]) for p in inputs), Ports(
        _placed(p, said.get(p.name)) for p in outputs
    )


def _placed(port: Port, batch: int | None) -> Port:
    """Return a port with its axis of samples, where the file lets that have any size."""
    free = batch is not None and batch < len(port.shape) and port.shape[batch] < 0
    return replace(port, batch=batch if free else None)


def _port(node: Any) -> Port:
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64"}.get(node.type) or node.type[7:-1]
    if dtype not in DATATYPES:
        raise UnfitArtifact(f"{node.name!r} has the type {node.type}, which is not supported")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Port(node.name, dtype, shape, tuple(s if isinstance(s, str) else "" for s in node.shape))


def _refusal(error: BaseException) -> Problem:
    said = first_line(error).rpartition("INVALID_ARGUMENT : ")[2]
    return Problem(("body", "inputs"), f"the model can't take these values: {said}")


class _Torch(ABC):
    platform = ""

    def __init__(self, artifact: Artifact, threads: int, device: Device) -> None:
        import torch

        self._torch, self._device = torch, torch_device(device)
        torch.set_num_threads(threads)
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._program = self._loaded(artifact)

    @abstractmethod
    def _loaded(self, artifact: Artifact) -> Callable[[Sequence[Any]], Any]:
        """Return what takes tensors by position."""

    def _is_refusal(self, error: Exception) -> bool:
        """Say whether the program failed because of the values that it was given."""
        return isinstance(error, IndexError)

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        torch = self._torch
        whole = (np.require(arrays[port.name], requirements=["C", "W"]) for port in self.inputs)
        # Flat at first: where an axis has one place only, NumPy's strides may be any.
        given = [torch.from_numpy(array.reshape(-1)).view(array.shape).to(self._device) for array in whole]
        try:
            with torch.inference_mode():
                result = self._program(given)
        except (IndexError, RuntimeError) as error:
            if self._is_refusal(error):
                raise Invalid(_refusal(error)) from None
            raise ModelError(Problem(("model",), f"the model failed: {first_line(error)}")) from error
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if len(leaves) != len(self.outputs):
            said = f"the model returned {len(leaves)} tensors, but {len(self.outputs)} are described"
            raise ModelError(Problem(("model",), said))
        return {
            port.name: leaf.cpu().contiguous().numpy()
            for port, leaf in zip(self.outputs, leaves, strict=True)
        }


class _TorchScript(_Torch):
    platform = "pytorch_torchscript"

    def _loaded(self, artifact: Artifact) -> Callable[[Sequence[Any]], Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                program = self._torch.jit.load(str(artifact.file), map_location=self._device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UnfitArtifact(f"torch can't load {artifact.file.name}: {first_line(error)}") from None
        return lambda tensors: program(*tensors)


class _Aot(_Torch):
    platform = "pytorch_aotinductor"

    def _loaded(self, artifact: Artifact) -> Callable[[Sequence[Any]], Any]:
        if self._device.type != "cpu":
            raise UnfitArtifact(
                "torch.aot compiled the model for the CPU", fix="serve the ONNX model on a GPU"
            )
        return aot.load(artifact.file)

    def _is_refusal(self, error: Exception) -> bool:
        return str(error).startswith("input_handles[")


_KINDS: Mapping[str, Callable[[Artifact, int, Device], Program]] = {
    "onnx": _Onnx,
    "torchscript": _TorchScript,
    "aot": _Aot,
}
