"""Load, listen, serve, drain: the life of the server's process."""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings

from .log import Log
from .model import load
from .options import Settings
from .service import Service, cores, settle

__all__ = ["run"]

_BACKLOG = 2048


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and what then runs is answered; a second signal ends at once."""
    if settings.server == "flask":
        from .wsgi import serve
    else:
        from .uvicorn_server import serve
    warnings.filterwarnings("ignore", "overflow encountered in dot", RuntimeWarning)  # It is looked at.
    model = load(settings, cores())
    listener = _listen(settings)
    service = Service(settings, Log(as_json=settings.json))
    return serve(service, model, listener, lambda: _announce(service, listener))


def _listen(settings: Settings) -> socket.socket:
    """Return the socket that the server listens on. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)


def _announce(service: Service, listener: socket.socket) -> None:
    """Print the address and the model, as one line: requests are answered from now on."""
    settle()
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    digest = service.live.model.artifact.digest
    if service.settings.json:
        line = json.dumps({"url": url, "name": service.name, "digest": digest, "pid": os.getpid()})
    else:
        line = f"serving {service.name} {service.live.version} at {url}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
