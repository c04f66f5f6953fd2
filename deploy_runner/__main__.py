"""`python -m deploy_runner`: the same as the `deploy-runner` command."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if sys.path[:1] == [os.getcwd()]:  # A token.py or signal.py of the user's would hide Python's own.
        del sys.path[0]
    from .cli import start

    sys.exit(start())
