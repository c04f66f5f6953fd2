"""`ui`: show the store's pipelines and runs as a page on this machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, NamedTuple

from ..api import home_of
from ..errors import UsageError
from .options import DEFAULT_PIPELINE, Argument, Option

__all__ = ["Ui"]

_PACKAGES = ("fastapi", "uvicorn")
_PORT = 8585


def _port(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


class Ui(NamedTuple):
    """Show pipelines, runs, figures and artifacts as a local web page."""

    pipeline: Annotated[
        str, Argument(f"the pipeline whose store is shown (default: {DEFAULT_PIPELINE})", "PIPELINE")
    ] = DEFAULT_PIPELINE
    port: Annotated[
        int, Option(f"the port on the loopback interface; 0 takes a free one (default: {_PORT})", "N", _port)
    ] = _PORT

    def __call__(self) -> int:
        """Serve until Ctrl-C; nothing of the store is changed."""
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"ui needs {', '.join(missing)}", fix="pip install 'deploy-runner[serve]'")
        path = Path(self.pipeline)
        home = home_of(path, os.environ)
        if path.is_dir():
            raise UsageError(f"{path} is a folder", fix="use the pipeline's YAML file")
        if home.exists() and not home.is_dir():
            raise UsageError(f"the store {home} is a file", fix="set DEPLOY_RUNNER_HOME to a folder")
        if not home.exists() and not path.is_file():
            fix = "name the pipeline, or set DEPLOY_RUNNER_HOME to its store"
            raise UsageError(f"neither {path} nor a store {home} exists", fix=fix)
        from ..ui.server import serve
        from ..ui.site import Site

        return serve(Site(home, path.absolute()), self.port, self._announce)

    def _announce(self, address: str) -> None:
        print(f"open {address}\nCtrl-C ends it", flush=True)
