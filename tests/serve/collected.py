"""A server without the collector of garbage, which says what it leaves and what it does.

`python -m tests.serve.collected ARTIFACT OPTION…`, as `deploy-runner serve`. On SIGUSR1 it prints what a
collection finds; on SIGUSR2 how many functions its event loop has called since the last one.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from types import FrameType

from deploy_runner.server.__main__ import main

_calls = 0


def _tell(*_: object) -> None:
    print(json.dumps({"found": gc.collect(), "frozen": gc.get_freeze_count()}), flush=True)


def _count(frame: FrameType, event: str, argument: object) -> None:
    global _calls
    _calls += event in ("call", "c_call")


def _tell_calls(*_: object) -> None:
    global _calls
    sys.setprofile(None)
    calls, _calls = _calls, 0
    print(json.dumps({"calls": calls}), flush=True)
    sys.setprofile(_count)


if __name__ == "__main__":
    gc.disable()
    signal.signal(signal.SIGUSR1, _tell)
    signal.signal(signal.SIGUSR2, _tell_calls)
    sys.exit(main())
