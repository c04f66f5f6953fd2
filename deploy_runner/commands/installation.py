"""What is installed, and from where: the line that `--version` prints."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from deploy_runner.types import VERSION

__all__ = ["installation"]

_PLACE = Path(__file__).parent.parent


def installation() -> str:
    """Return the version, and where this code comes from; the version alone if that can't be found out."""
    try:
        origin = _origin(metadata.distribution("deploy-runner"))
    except Exception:  # Whatever the metadata of an installation may be, the version is known.
        return f"deploy-runner {VERSION}"
    return f"deploy-runner {VERSION} (Python {platform.python_version()}, {origin}, {_PLACE})"


def _origin(found: metadata.Distribution) -> str:
    """Return how this code was installed, by the file of PEP 610; raises if the file is damaged."""
    text = found.read_text("direct_url.json")
    direct: dict[str, Any] = json.loads(text) if text else {}
    url = urlsplit(direct.get("url", ""))
    editable = direct.get("dir_info", {}).get("editable", False)
    home = Path(unquote(url.path)) if editable else Path(str(found.locate_file("")))
    if not _PLACE.resolve().is_relative_to(home.resolve()):
        return "not installed"
    shown = urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))
    if "vcs_info" in direct:
        return f"commit {direct['vcs_info']['commit_id']} of {shown}"
    if editable:
        return "editable"
    return f"from {unquote(url.path) if url.scheme == 'file' else shown}" if shown else "from a package index"
