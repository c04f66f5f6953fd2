"""An artifact's files as a ModelPack: layers, configuration and manifest, the same bytes for the same files.

Source: https://github.com/modelpack/model-spec/tree/v0.0.7/docs
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy_runner.sdk import StageError, sha256_file

__all__ = ["ARTIFACT", "MANIFEST", "Blob", "Pack", "pack"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{kind}.v1.{form}"

_SUFFIXES = {
    "weight.config": ".json .yaml .yml .toml .txt .pbtxt .jinja .model .vocab",
    "doc": ".md .rst .pdf .html",
    "code": ".py .sh .c .cc .cpp .h .js .ts .kt .swift .java",
    "dataset": ".csv .npz .npy .parquet .jsonl",
}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_DOCUMENTS = ("LICENSE", "NOTICE", "README", "COPYING")
_FORMATS = {
    ".onnx": "onnx", ".safetensors": "safetensors", ".gguf": "gguf", ".tflite": "tflite",
    ".pt": "torchscript", ".ptl": "torchscript", ".pt2": "pt2", ".pte": "executorch",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes on their way to a registry: a file, with its SHA-256 in hexadecimal and its size in bytes."""

    path: Path
    digest: str
    size: int
    kind: str = _CONFIG

    def descriptor(self, **annotations: str) -> dict[str, Any]:
        """Return how a manifest names the blob."""
        row = {"mediaType": self.kind, "digest": f"sha256:{self.digest}", "size": self.size}
        return row | ({"annotations": annotations} if annotations else {})


@dataclass(frozen=True, slots=True)
class Pack:
    """A ModelPack: its blobs in the order in which they are uploaded, its manifest, the digest of that."""

    blobs: tuple[Blob, ...]
    manifest: bytes
    digest: str


def pack(
    files: Mapping[str, Path], known: Mapping[str, str], name: str, licenses: list[str], folder: Path
) -> Pack:
    """Describe files by their paths. `known` has digests that are computed, `folder` is for the config."""
    if not files:
        raise StageError("the artifact has no file")
    layers = {path: _layer(path, file, known.get(path)) for path, file in sorted(files.items())}
    formats = {_FORMATS[suffix] for path in layers if (suffix := PurePosixPath(path).suffix) in _FORMATS}
    config = {
        "descriptor": {"name": name} | ({"licenses": licenses} if licenses else {}),
        "config": {"format": formats.pop()} if len(formats) == 1 else {},
        "modelfs": {
            "type": "layers",
            "diffIds": [f"sha256:{_uncompressed(blob)}" for blob in layers.values()],
        },
    }
    place = folder / "config.json"
    place.write_bytes(_json(config))
    described = Blob(place, sha256_file(place), place.stat().st_size)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": described.descriptor(),
            "layers": [blob.descriptor(**_annotations(path)) for path, blob in layers.items()],
        }
    )
    return Pack((*layers.values(), described), manifest, hashlib.sha256(manifest).hexdigest())


def _annotations(path: str) -> dict[str, str]:
    """Return the path as ModelPack names it, and as ORAS does, which else names a file by its digest."""
    return {
        "org.cncf.model.file.mediatype.untested": "true",
        "org.cncf.model.filepath": path,
        "org.opencontainers.image.title": path,
    }


def _layer(path: str, file: Path, known: str | None) -> Blob:
    pure = PurePosixPath(path)
    packed = path.endswith((".tar.gz", ".tgz"))
    kind = "doc" if pure.stem.upper() in _DOCUMENTS else _KINDS.get(pure.suffix.lower(), "weight")
    form = "tar+gzip" if packed else "tar" if pure.suffix == ".tar" else "raw"
    kind = "weight" if form != "raw" else kind
    return Blob(file, known or sha256_file(file), file.stat().st_size, _LAYER.format(kind=kind, form=form))


def _uncompressed(blob: Blob) -> str:
    """Return the SHA-256 of a layer before it was compressed."""
    if not blob.kind.endswith("+gzip"):
        return blob.digest
    try:
        with gzip.open(blob.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError) as error:
        raise StageError(f"{blob.path.name} is no gzip archive: {error}") from error


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
