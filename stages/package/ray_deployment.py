"""The model in SageMaker's Ray Serve image: code/inference.py answers, as it does in the PyTorch image.

The image starts this with `serve run config.yaml`, and its adapter posts a request's body, Content-Type and
Accept to /: https://github.com/aws/deep-learning-containers/tree/main/scripts/docker/ray
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

from ray import serve

FOLDER = pathlib.Path(__file__).resolve().parent


def loaded() -> Any:
    """Return the functions of code/inference.py with the model that they have loaded."""
    sys.path.insert(0, str(FOLDER / "code"))
    from handlers import Handlers

    found = Handlers(FOLDER, os.environ.get("SAGEMAKER_PROGRAM") or "inference.py")
    found.load()
    return found


# Serve's health check, which is SageMaker's /ping, says 200 as soon as this module is imported, also if
# __init__ then fails (measured with Ray 2.60). A model that can't be loaded has to fail here.
loaded()


@serve.deployment
class Model:
    """One replica, which answers one request after the other."""

    def __init__(self) -> None:
        self._handlers = loaded()

    async def __call__(self, request: Any) -> Any:
        """Answer a request."""
        from starlette.responses import Response

        kind, accept = (request.headers.get(name) for name in ("content-type", "accept"))
        status, body, answered = self._handlers.answer(await request.body(), kind, accept)
        return Response(body, status_code=status, headers={"content-type": answered})


app = Model.bind()  # type: ignore[attr-defined]
