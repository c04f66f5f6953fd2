"""What a package, or an image, that runs on a GPU needs of AWS: an image and instances that have one."""

from __future__ import annotations

import json
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

from deploy_runner.sdk import StageError

from . import images, limits

__all__ = ["require_gpu"]

_DESCRIBED = "model.json"


def require_gpu(packed: Path, image: str, instance_type: str | None) -> None:
    """Raise StageError where a package, or a context, needs a GPU and what starts it has none.

    No `instance_type` is serverless.
    """
    is_context = packed.is_dir()
    if (_device_of_context(packed) if is_context else _device(packed)) == "cpu":
        return
    own = "image" if is_context else "package"
    if images.is_for_cpu(image):
        raise StageError(
            f"the {own} runs on a GPU, and AWS's image {image.rpartition('/')[2]} has no CUDA",
            fix="set `image_uri` to the image for GPUs, or `device: cpu` in package.sagemaker",
        )
    if not limits.has_gpu(instance_type or ""):
        what = f"`instance_type: {instance_type}`" if instance_type else "a `serverless` endpoint"
        raise StageError(f"the {own} runs on a GPU, and {what} has none",
                         fix="set `instance_type` to a type with GPUs, e.g. ml.g5.xlarge")  # fmt: skip


def _device_of_context(context: Path) -> str:
    """Return where the image of a context runs. Raises StageError for a folder that is no such context."""
    try:
        return str(json.loads((context / "model" / _DESCRIBED).read_text("utf-8")).get("device", "cpu"))
    except (OSError, ValueError, AttributeError):
        raise StageError(
            f"`context` has no model/{_DESCRIBED}",
            fix="use the output `context` of package.container, or leave it out for an image of your own",
        ) from None


def _device(package: Path) -> str:
    """Return where a package of package.sagemaker runs; of another file nothing is known, so `cpu`."""
    with suppress(tarfile.TarError, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):  # noqa: SIM117
        with tarfile.open(package, "r|gz") as archive:
            for entry in archive:
                if entry.isfile() and entry.name == _DESCRIBED:
                    file = archive.extractfile(entry)
                    return str(json.loads(file.read())["device"]) if file else "cpu"
                if entry.isfile() and entry.name > _DESCRIBED:
                    break  # Members are sorted by name: what follows, the weights, needn't be unpacked.
    return "cpu"
