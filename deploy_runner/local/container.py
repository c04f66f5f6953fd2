"""An inference container on loopback: serves a `model.tar.gz` as SageMaker's own containers do.

    python -m deploy_runner.local.container model.tar.gz     prints {"url": …}, serves until stdin ends

`GET /ping` is 200 once the model is loaded. `POST /invocations` goes through the package's own
`code/inference.py`: model_fn once, then input_fn, predict_fn and output_fn for each request, text
decoded for JSON and CSV, bytes otherwise; `transform_fn` stands for the last three where it is
defined. Source of the contract: https://github.com/aws/sagemaker-inference-toolkit
"""

from __future__ import annotations

import argparse
import http.server
import importlib.util
import inspect
import json
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..server.archives import unpack

__all__ = ["main"]

_TEXT = ("application/json", "text/csv")
_MAX_BODY_BYTES = 25 << 20
"""https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html"""


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handlers:
    """The functions of a package's `code/inference.py`, and its loaded model."""

    def __init__(self, folder: Path, program: str) -> None:
        sys.path.insert(0, str(folder / "code"))
        self._code = _imported(folder / "code" / program)
        missing = [n for n in ("model_fn", "input_fn", "predict_fn", "output_fn") if not self._has(n)]
        if missing and not (missing == ["input_fn", "predict_fn", "output_fn"] and self._has("transform_fn")):
            raise ImportError(f"code/{program} defines no {missing[0]}")
        self._model = _call(self._code.model_fn, str(folder))
        self._lock = threading.Lock()

    def _has(self, name: str) -> bool:
        return callable(getattr(self._code, name, None))

    def answer(self, body: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        """Return the response's body and content type."""
        kind = content_type.partition(";")[0].strip()
        data = body.decode("utf-8") if kind in _TEXT else body
        with self._lock:
            if self._has("transform_fn"):
                result = _call(self._code.transform_fn, self._model, data, kind, accept)
            else:
                read = _call(self._code.input_fn, data, kind)
                result = _call(self._code.output_fn, _call(self._code.predict_fn, read, self._model), accept)
        if isinstance(result, tuple):
            result, accept = result
        return (result.encode() if isinstance(result, str) else bytes(result)), accept


def _call(function: Callable[..., Any], *given: Any) -> Any:
    """Call a handler; one that takes one argument more gets a context, which is None here."""
    wanted = len(inspect.signature(function).parameters)
    return function(*given, *([None] if wanted == len(given) + 1 else []))


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("inference", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"the package has no code/{path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
                accept = self.headers.get("Accept") or "application/json"
                accept = "application/json" if accept == "*/*" else accept
                kind = self.headers.get("Content-Type") or "application/json"
                answer, content_type = handlers.answer(body, kind, accept)
                self._send(200, answer, content_type)
            except _Refused as error:
                self._send(error.status, str(error).encode(), "text/plain")
            except Exception as error:
                traceback.print_exc()
                # As SageMaker's toolkit does with errors of its own classes.
                status = getattr(error, "status_code", 500)
                said = error.message if hasattr(error, "message") else f"{type(error).__name__}: {error}"
                self._send(status, said.encode(), "text/plain")

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
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(handlers))


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address, or the error, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.container", description=__doc__)
    parser.add_argument("package", type=Path, help="model.tar.gz of package.sagemaker")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
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
