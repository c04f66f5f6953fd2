"""deploy-runner: a content-addressed build system whose artifacts are models.

The public API is `load`, `plan`, `run` and `explain` (see `deploy_runner.api`), and the errors.
Names are imported when first used, so that `import deploy_runner` costs nothing.
"""

from __future__ import annotations

import os
import sys

from .silence import SILENCE, SILENCED

# Not typing's: to `python -m deploy_runner` a typing.py in the folder still hides Python's own here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import Pipeline, explain, load, plan, run
    from .errors import DeployRunnerError
    from .types import VERSION as __version__  # noqa: N811

__all__ = ["DeployRunnerError", "Pipeline", "__version__", "explain", "load", "plan", "run"]


for _name, _value in SILENCE.items():
    os.environ.setdefault(_name, _value)
for _name in SILENCED:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'deploy_runner' has no attribute {name!r}")
    import importlib

    if name == "__version__":
        return importlib.import_module(".types", __name__).VERSION
    api = importlib.import_module(".api", __name__)
    errors = importlib.import_module(".errors", __name__)
    public = {n: getattr(api, n) for n in ("Pipeline", "explain", "load", "plan", "run")}
    globals().update(public, DeployRunnerError=errors.DeployRunnerError)
    return globals()[name]
