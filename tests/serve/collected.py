"""A server without the collector of garbage: on SIGUSR1 it prints what one finds.

`python -m tests.serve.collected ARTIFACT OPTION…`, as `deploy-runner serve`.
"""

from __future__ import annotations

import gc
import json
import signal
import sys

from deploy_runner.server.__main__ import main


def _tell(*_: object) -> None:
    print(json.dumps({"found": gc.collect(), "frozen": gc.get_freeze_count()}), flush=True)


if __name__ == "__main__":
    gc.disable()
    signal.signal(signal.SIGUSR1, _tell)
    sys.exit(main())
