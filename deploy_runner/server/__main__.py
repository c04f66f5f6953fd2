"""Serve a model: `python -m app ARTIFACT`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .options import add_options, read_settings
from .problems import UnfitArtifact

__all__ = ["main"]

_SERVE = "serve"
"""What SageMaker runs an image with:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html"""
_MODELS = ("model.json", "model.onnx")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; return 0 after draining, 2 where there is nothing that can be served."""
    parser = argparse.ArgumentParser(prog="app", description="Serve a model.")
    parser.add_argument(
        "artifact", nargs="?", default=_SERVE,
        help="the model (default, and for SageMaker's `serve`: /opt/ml/model, else model/ beside app/)",
    )  # fmt: skip
    add_options(parser)
    given = vars(parser.parse_args(argv))
    if given["artifact"] == _SERVE and not Path(_SERVE).exists():
        given["artifact"] = str(_own_model(os.environ))
    try:
        settings = read_settings(given, os.environ)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    try:
        from .running import run

        return run(settings)
    except UnfitArtifact as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            said += " (--port 0 takes a free port)"
        print(f"error: {settings.host}:{settings.port}: {said}", file=sys.stderr)  # noqa: T201
        return 2


def _own_model(environ: Mapping[str, str]) -> Path:
    """Return the model that SageMaker has placed, else that of the image."""
    placed = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model")
    if any((placed / name).is_file() for name in _MODELS):
        return placed
    return Path(__file__).parent.parent / "model"


if __name__ == "__main__":
    sys.exit(main())
