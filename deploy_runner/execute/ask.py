"""Ask a push about its live remote, or have it changed back: `status`, `rollback`, `promote`.

The stage's method runs in a process of its own, with its inputs, the target and the credentials, as
in a run; what it prints is passed on without secrets.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import StageError
from ..plan import Decision, Planner
from ..store.cas import Store
from ..types import Graph, StageNode
from . import worker
from .action import Action, live_environment, raise_failure, request, secrets_of
from .collect import read_result
from .redact import Redactor
from .sandbox import Sandbox

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
) -> Any:
    """Return what the stage answers. Raises what the stage raises.

    `question` holds the `verb` and its arguments; `decision` brings the inputs, None for none.
    """
    folder = store.new_tmp() / f"ask-{node.id}"
    (folder / "work").mkdir(parents=True)
    action = Action(
        node, decision or _NOTHING, folder, store.lock("ask"), folder / "log",
        Redactor(secrets_of(node, environ)), time.monotonic(),
    )  # fmt: skip
    asked = request(
        action, graph, store, planner.environment, environ, live_environment(environ), run=""
    ) | {"ask": dict(question)}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-sP", "-m", "deploy_runner.execute.ask"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin:
            process.stdin.write(json.dumps(asked).encode())
        for data in process.stdout:
            for line in action.lines(data):
                if not line.startswith(worker.PROGRESS):
                    log(line)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    result = read_result(folder)
    raise_failure(action, -code if code < 0 else code << 8, result, "")
    if "answer" not in result:
        raise StageError(f"{node.uses} gave no answer")
    return action.redactor.json(result["answer"])


def main() -> int:
    """Answer the request on standard input."""
    return worker.run(json.loads(sys.stdin.buffer.read()), Sandbox(network=True))


if __name__ == "__main__":
    sys.exit(main())
