"""Packages that lie in a folder of the interpreter's path as pip leaves them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["installed"]


def installed(folder: Path, name: str, version: str, source: str, **files: str) -> None:
    """Lay a package out as pip does: its file, its metadata, its RECORD."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.dist-info"):
        old.rename(folder.parent / f"old-{old.name}-{len(list(folder.parent.iterdir()))}")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (folder / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}.py,sha256={hash(source)},9\n{info.name}/METADATA,,\n")
    for file, text in files.items():
        (info / file.replace("_json", ".json")).write_text(text)
