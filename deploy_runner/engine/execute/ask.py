"""Ask a push about its live remote, or have it changed back: `status`, `credentials`, `rollback`, `promote`.

The stage's method runs in a process of its own, with its inputs, the target and the credentials, as
in a run; what it prints is passed on without secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import StageError
from ...store.cas import Store
from ...types import Graph, StageNode
from ..plan import Decision, Planner
from .action import Action, Project, raise_failure, request, secrets_of
from .collect import read_result
from .fork import ForkServer
from .live import credentials_of, live_environment
from .redact import Redactor
from .worker import PROGRESS

__all__ = ["ask"]

_NOTHING = Decision("converge", "0" * 64, {}, {}, {})


def ask(
    graph: Graph,
    planner: Planner,
    store: Store,
    node: StageNode,
    decision: Decision | None,
    question: Mapping[str, str],
    *,
    environ: Mapping[str, str],
    log: Callable[[str], None],
    server: ForkServer | None = None,
) -> Any:
    """Return what the stage answers. Raises what the stage raises.

    `question` holds the `verb` and its arguments; `decision` has the inputs, None for none. Without a
    `server` the worker is forked from one of its own.
    """
    folder = store.new_tmp() / f"ask-{node.id}"
    (folder / "work").mkdir(parents=True)
    action = Action(
        node, decision or _NOTHING, folder, Redactor(credentials_of(environ) | secrets_of(node, environ))
    )
    project = Project(graph.root, graph.live)
    cloud = live_environment(environ)
    asked = request(action, project, store, planner.environment, environ, cloud) | {"ask": dict(question)}
    used = server or ForkServer(threads=node.resources.cpu)
    try:
        status = _answered(asked, action, log, used)
    finally:
        action.close()
        if server is None:
            used.stop()
    result = read_result(folder)
    raise_failure(action, status, result, "", root=graph.root)
    if "answer" not in result:
        raise StageError(f"{node.uses} returned no answer")
    return action.redactor.json(result["answer"])


def _answered(asked: dict[str, Any], action: Action, log: Callable[[str], None], server: ForkServer) -> int:
    """Have a worker answer, pass on what it prints, and return its status as of waitpid(2)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        with open(read_end, "rb") as printed:
            with open(write_end, "wb") as end:
                server.spawn(asked, end.fileno())
            for data in printed:
                for line in action.lines(data):
                    if not line.startswith(PROGRESS):
                        log(line)
        while True:
            for answer in server.answers():
                if answer["event"] == "exited":
                    return int(answer["status"])
    except (EOFError, OSError) as error:
        raise StageError("the fork server has ended", fix="try again") from error
