"""A Core ML package on disk: made the same each time, and read back."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError

from ..model.bundles import Bundle, Port

_SPEC = "Data/com.apple.CoreML/model.mlmodel"
_DATE = "com.github.apple.coremltools.conversion_date"
_DEBUG = "executorch_debug_handle_mapping.json"
_TYPES = {
    "float32": 65568,
    "float16": 65552,
    "int32": 131104,
    "float64": 65568,
    "int64": 131104,
    "bool": 65568,
}
"""Type of a tensor → the type that Core ML has for it (FeatureTypes.proto: ArrayFeatureType)."""


def clean(package: Path) -> None:
    """Take out what differs between two conversions: the date, and the identities of files."""
    spec = _spec(package)
    spec.description.metadata.userDefined.pop(_DATE, None)
    (package / _SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    (package / _DEBUG).unlink(missing_ok=True)
    manifest = json.loads((package / "Manifest.json").read_text("utf-8"))
    items = {
        key: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"]))
        for key, item in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {items[key]: item for key, item in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = items[manifest["rootModelIdentifier"]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")


def check_ports(bundle: Bundle, package: Path) -> None:
    """Compare the package's names, types and sizes with the original's. Raises StageError."""
    spec = _spec(package)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    made = {o.name: o.type.tensorType for op in block.operations for o in op.outputs}
    made |= {value.name: value.type.tensorType for value in spec.mlProgram.functions["main"].inputs}
    for kind, ports, features in (
        ("input", bundle.inputs, spec.description.input),
        ("output", bundle.outputs, spec.description.output),
    ):
        types = {feature.name: feature.type.multiArrayType.dataType for feature in features}
        if list(types) != [port.name for port in ports]:
            raise StageError(f"the package has the {kind}s {', '.join(types)}")
        for port in ports:
            _check_port(kind, port, types[port.name], made[port.name])


def _check_port(kind: str, port: Port, found: int, tensor: Any) -> None:
    if found not in (_TYPES.get(port.dtype), _TYPES["float16"] if "float" in port.dtype else None):
        raise StageError(f"the {kind} {port.name!r} is of another type in the package than {port.dtype}")
    sizes = [size.constant.size if size.HasField("constant") else None for size in tensor.dimensions]
    wanted = [None if axis in port.dynamic else size for axis, size in enumerate(port.shape)]
    fits = len(sizes) == len(wanted) and all(
        size == want or (size is None and kind == "output") for size, want in zip(sizes, wanted, strict=True)
    )
    if not fits:
        said = f"the {kind} {port.name!r} has the sizes {sizes} in the package, the original {wanted}"
        raise StageError(said, fix="leave the axis out of `dynamic`, if forward() fixes it")


def _spec(package: Path) -> Any:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / _SPEC).read_bytes())
    return spec
