"""Where a model runs: on the CPU, or on a GPU by CUDA, and never on the one in place of the other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from .problems import UnfitArtifact

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["DEVICES", "Device", "onnx_session", "torch_device"]

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("cpu", "cuda")

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS: dict[Device, Sequence[Any]] = {
    "cpu": [_CPU],
    # The CPU takes what has no kernel for CUDA. TF32 would keep 10 of 23 bits of each factor:
    # https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#use_tf32
    "cuda": [(_CUDA, {"use_tf32": "0"}), _CPU],
}
_NO_GPU = "a GPU needs NVIDIA's driver; a container is started with `--gpus all`"


def onnx_session(
    file: str | bytes, options: onnxruntime.SessionOptions, device: Device
) -> onnxruntime.InferenceSession:
    """Open an ONNX model on a device; onnxruntime by itself falls back to the CPU, and says nothing.

    Raises UnfitArtifact where the machine lacks the device, and onnxruntime's own errors.
    """
    import onnxruntime

    if device == "cuda":
        if _CUDA not in onnxruntime.get_available_providers():
            raise UnfitArtifact(
                f"onnxruntime {onnxruntime.__version__} is built for the CPU alone",
                fix="pip uninstall onnxruntime, then install onnxruntime-gpu[cuda,cudnn] in its place",
            )
        lacking = _preload()
    opened = onnxruntime.InferenceSession(file, options, providers=_PROVIDERS[device])
    found = opened.get_providers()
    if device == "cuda" and found[0] != _CUDA:
        raise UnfitArtifact(f"onnxruntime can't use a GPU here, and took the CPU{lacking}", fix=_NO_GPU)
    if device == "cpu" and found != [_CPU]:
        raise UnfitArtifact(f"onnxruntime chose the providers {found}, not the CPU's")
    return opened


@cache
def _preload() -> str:
    """Load CUDA's libraries from where pip has put them; return the first that can't be, after a colon."""
    import onnxruntime

    printed = StringIO()
    with redirect_stdout(printed):
        onnxruntime.preload_dlls()
    line = printed.getvalue().partition("\n")[0]
    return f": {line}" if line else ""


def torch_device(device: Device) -> Any:
    """Return torch's device. Raises UnfitArtifact where the machine lacks it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        said = "is built for the CPU alone" if torch.version.cuda is None else "finds no GPU here"
        raise UnfitArtifact(f"torch {torch.__version__} {said}", fix=_NO_GPU)
    return torch.device(device)
