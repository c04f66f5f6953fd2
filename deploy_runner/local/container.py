"""An inference container on loopback: serves a `model.tar.gz` as SageMaker's own containers do.

    python -m deploy_runner.local.container model.tar.gz     prints {"url": …}, serves until stdin ends

`GET /ping` is 200 once the model is loaded. `POST /invocations` goes through the package's own
`code/inference.py`, by the rules of SageMaker's toolkit. Of a folder, a context of `package.container`, the
image's own server is started.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

from ..server.archives import unpack
from ..server.handlers import Handlers
from .image import serve

__all__ = ["main"]

_MAX_BODY_BYTES = 25 << 20
"""https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html"""


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _handler(handlers: Handlers) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/ping":
                self._send(200, b"", "application/json")
            else:
                self._send(404, b"not found", "text/plain")

        def do_POST(self) -> None:
            try:
                body = self.rfile.read(self._length())
                if self.path != "/invocations":
                    raise _Refused(404, "not found")
                self._send(
                    *handlers.answer(body, self.headers.get("Content-Type"), self.headers.get("Accept"))
                )
            except _Refused as error:
                self._send(error.status, str(error).encode(), "text/plain")

        def _length(self) -> int:
            length = int(self.headers.get("Content-Length") or 0)
            if length > _MAX_BODY_BYTES:
                self.close_connection = True
                raise _Refused(413, f"the body has {length} bytes, more than {_MAX_BODY_BYTES}")
            return length

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    return Handler


def start(package: Path, folder: Path, environ: Mapping[str, str]) -> http.server.ThreadingHTTPServer:
    """Load a package and return its server, bound to a free port of loopback."""
    unpack(package, folder)
    handlers = Handlers(folder, environ.get("SAGEMAKER_PROGRAM") or "inference.py")
    handlers.load()
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(handlers))


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address, or the error, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.container", description=__doc__)
    parser.add_argument(
        "package", type=Path, help="model.tar.gz of package.sagemaker, or the context of package.container"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.package.is_dir():
            serve(args.package.absolute(), Path(folder))
            return 0
        try:
            server = start(args.package, Path(folder), os.environ)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)  # noqa: T201
            return 1
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(json.dumps({"url": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)  # noqa: T201
        sys.stdin.read()
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
