"""Ask this container's server whether it is ready: `python -m app.health`, which is its HEALTHCHECK.

The address follows from the environment, as the server's does. http.client knows no proxies.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from collections.abc import Mapping

from .options import from_environment

__all__ = ["main"]

_WAIT_S = 2
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Return 0 where it answers that it is ready, else 1."""
    try:
        host, port = str(from_environment("host", environ)), int(from_environment("port", environ))
    except argparse.ArgumentTypeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    connection = http.client.HTTPConnection(_EVERY_ADDRESS.get(host, host), port, timeout=_WAIT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"the server doesn't answer: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        connection.close()
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
