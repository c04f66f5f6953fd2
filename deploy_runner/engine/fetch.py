"""Bring what an address names into a folder here: a folder, a tar archive, `s3://…` or `hf://…`.

What comes from outside is not trusted: an archive is unpacked member by member, and the clients of
remotes run in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from ..errors import GateError, UsageError
from ..server.archives import BadArchive, is_archive, unpack

__all__ = ["local_folder"]

_REMOTE = ("s3", "hf")


@contextmanager
def local_folder(address: str) -> Iterator[Path]:
    """Yield the folder that an address names, or a copy of it that lasts as long as the block.

    Raises UsageError for an address that leads to no folder or archive, GateError for an archive
    that holds anything but files and folders of its own.
    """
    with TemporaryDirectory(prefix="deploy-runner-") as scratch:
        place = _place(address, Path(scratch, "fetched"))
        if place.is_dir():
            yield place
        elif place.is_file() and is_archive(place):
            yield _unpack(place, Path(scratch, "unpacked"))
        else:
            raise UsageError(
                f"{address} is not a folder or a tar archive",
                fix="use the output `signed` of package.sign, or a copy of it",
            )


def _place(address: str, scratch: Path) -> Path:
    scheme, _, rest = address.partition("://")
    if not rest:
        return Path(address)
    if scheme == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme not in _REMOTE:
        known = "a path, file://, s3://bucket/prefix or hf://owner/name[@revision][/folder]"
        raise UsageError(f"{address} can't be fetched", fix=f"use {known}")
    command = [sys.executable, "-sP", "-m", "deploy_runner.stages.push.download", address, str(scratch)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"the client exited {done.returncode}"
        raise UsageError(f"{address} can't be fetched: {said}")
    return Path(done.stdout.strip())


def _unpack(archive: Path, target: Path) -> Path:
    """Return the unpacked archive, or the only folder in it."""
    try:
        unpack(archive, target)
    except BadArchive as error:
        raise GateError(str(error)) from None
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target
