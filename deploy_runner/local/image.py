"""The image of a context of `package.container` on loopback, without Docker.

The Dockerfile's environment and its entry point are run in the context's folder, with the argument that
SageMaker gives, on a free port, and beside a /opt/ml that is empty.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

__all__ = ["environment", "serve"]

_ENV = re.compile(r"^ENV (SERVE_.*)$", re.MULTILINE)
_PAIR = re.compile(r'([A-Z_]+)="((?:[^"\\]|\\.)*)"')


def environment(context: Path, base: Path) -> Mapping[str, str]:
    """Return the image's variables below this process's own, and above them what keeps it on this machine.

    `base` is its /opt/ml. Raises OSError where the folder has no Dockerfile.
    """
    text = (context / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    found = (pair for line in _ENV.findall(text) for pair in _PAIR.findall(line))
    here = {
        "SERVE_HOST": "127.0.0.1", "SERVE_JSON": "1", "SAGEMAKER_BIND_TO_PORT": "0",
        "SAGEMAKER_BASE_DIR": str(base),
    }  # fmt: skip
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found} | dict(os.environ) | here


def serve(context: Path, base: Path) -> None:
    """Serve until standard input ends; print the address as one line of JSON."""
    os.environ.update(environment(context, base))
    os.chdir(context)
    sys.path.insert(0, str(context))
    sys.dont_write_bytecode = True
    sys.argv = ["app", "serve"]
    threading.Thread(target=_end_with_input, daemon=True).start()
    runpy.run_module("app", run_name="__main__")


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
