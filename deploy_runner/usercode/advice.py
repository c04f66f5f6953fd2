"""What to say of a module that is missing: which one, who imports it, and how to get it if that is known."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Collection, Sequence

__all__ = ["how_to_install", "missing_module"]

_DISTRIBUTIONS = {
    "Crypto": "pycryptodome", "OpenSSL": "pyOpenSSL", "PIL": "Pillow", "attr": "attrs",
    "bs4": "beautifulsoup4", "cv2": "opencv-python-headless", "dateutil": "python-dateutil",
    "dotenv": "python-dotenv", "fitz": "PyMuPDF", "google.protobuf": "protobuf", "jwt": "PyJWT",
    "open_clip": "open_clip_torch", "pkg_resources": "setuptools", "pytorch_lightning": "pytorch-lightning",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "PyYAML",
}  # fmt: skip
"""Modules whose distribution has another name (each as its own documentation says)."""
_SAME = frozenset((
    "accelerate", "boto3", "coremltools", "datasets", "einops", "executorch", "huggingface_hub", "lightning",
    "matplotlib", "moto", "nncf", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "pandas", "peft",
    "safetensors", "scipy", "sentencepiece", "soundfile", "timm", "tokenizers", "torch", "torchao",
    "torchaudio", "torchvision", "tqdm", "transformers", "ultralytics", "xgboost",
))  # fmt: skip
"""Modules whose distribution has the same name. No other name is guessed: it may be anybody's package."""


def missing_module(
    error: ModuleNotFoundError, *, project: str, folder: str, extra: str, packages: Collection[str] = ()
) -> tuple[str, str]:
    """Return what is missing and what to do about it.

    `folder` is the stage type's; `extra` brings the module where a file there is what imports it, or where it
    is one of the type's `packages`, which a library imports for it.
    """
    name = error.name or str(error)
    top = name.partition(".")[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    where = frames[-1] if frames else None
    shown = f"{_short(where.filename, project)}:{where.lineno}" if where else "the stage"
    said = f"the module {name}, which {shown} imports, is not installed"
    beside = os.path.dirname(where.filename) if where else ""
    local = _local_file(top, [beside, project, folder])
    if local:
        return f"{said}, and {local} is not where Python looks for it", _local_fix(top, where, folder)
    own = where is not None and os.path.dirname(where.filename) == folder
    if extra and (own or top in packages):
        return said, f"pip install 'deploy-runner[{extra}]'"
    return said, how_to_install(name)


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<") or filename == importlib.__file__


def how_to_install(module: str) -> str:
    """Return the command that brings a module where its distribution is known, else no command."""
    top = module.partition(".")[0]
    known = _DISTRIBUTIONS.get(module) or _DISTRIBUTIONS.get(top) or (top if top in _SAME else "")
    return f"pip install {known}" if known else "install the package that provides it"


def _short(filename: str, project: str) -> str:
    inside = os.path.relpath(filename, project) if os.path.isabs(filename) else filename
    return os.path.basename(filename) if inside.startswith("..") else inside


def _local_file(top: str, folders: Sequence[str]) -> str:
    for folder in folders:
        for candidate in (f"{top}.py", top):
            path = os.path.join(folder, candidate)
            if folder and (os.path.isfile(path) or os.path.isfile(os.path.join(path, "__init__.py"))):
                return candidate
    return ""


def _local_fix(top: str, where: traceback.FrameSummary | None, folder: str) -> str:
    if where is not None and os.path.dirname(where.filename) == folder:
        return f"if it is beside the stage, import it with `from . import {top}`"
    return "import it from the folder of the file that `with` names, or put its folder on PYTHONPATH"
