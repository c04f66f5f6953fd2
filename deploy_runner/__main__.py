"""`python -m deploy_runner`: the same as the `deploy-runner` command."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
