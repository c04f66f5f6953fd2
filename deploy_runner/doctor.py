"""Check, before anything runs, that what a pipeline needs is on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .registry import load_class
from .types import Graph, Json, StageNode

__all__ = ["Check", "examine"]

_FREE_BYTES = 2 * 1024**3
_AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
                  "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `fix` says how to mend it where `ok` is False."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f" ({self.fix})" if self.fix and not self.ok else ""
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.detail}{fix}"

    def as_dict(self) -> dict[str, Json]:
        """Return the check as JSON."""
        return asdict(self)


def examine(graph: Graph, environ: Mapping[str, str]) -> list[Check]:
    """Return every check for this pipeline and target, the passed ones too."""
    return [
        _python(),
        _disk(Path(graph.root)),
        _sandbox(),
        *_extras(graph),
        *_secrets(graph, environ),
        *_credentials(graph, environ),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    writable = os.access(root, os.W_OK)
    detail = f"{free / 1024**3:.1f} GiB free" + ("" if writable else ", not writable")
    return Check("disk", writable and free > _FREE_BYTES, detail, "free 2 GiB, or set DEPLOY_RUNNER_HOME")


def _sandbox() -> Check:
    from .execute.sandbox import available

    return Check("sandbox", True, available())


def _extras(graph: Graph) -> Iterator[Check]:
    needed: dict[str, tuple[str, list[str]]] = {}
    for node in graph.stages.values():
        extra = load_class(node.module, node.class_name, node.stage_dir).extra
        for module in (*node.preload, *_modules(node)):
            needed.setdefault(module, (extra, []))[1].append(node.id)
    for module, (extra, ids) in sorted(needed.items()):
        found = _installed(module)
        said = "installed" if found else f"missing, needed by {', '.join(ids)}"
        fix = f"pip install 'deploy-runner[{extra}]'" if extra else f"pip install {module}"
        yield Check(module, found, said, fix)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _modules(node: StageNode) -> Iterator[str]:
    for package in node.packages:
        name = package.replace("-", "_").lower()
        yield {
            "sagemaker_core": "sagemaker",
            "pyyaml": "yaml",
            "scikit_learn": "sklearn",
            "protobuf": "google.protobuf",
        }.get(name, name)


def _secrets(graph: Graph, environ: Mapping[str, str]) -> Iterator[Check]:
    for node in graph.stages.values():
        for name in node.secrets:
            yield Check(
                f"secret {name}",
                name in environ,
                "set" if name in environ else f"not set, needed by {node.id}",
                f"export {name}=…",
            )


def _credentials(graph: Graph, environ: Mapping[str, str]) -> Iterator[Check]:
    pushes = [n for n in graph.stages.values() if n.network and n.converges]
    if not pushes:
        return
    if not graph.live:
        yield Check("credentials", True, "none needed: the target is a dry run")
        return
    if any(not n.uses.endswith(".hub") for n in pushes):
        known = os.path.join(environ.get("HOME", ""), ".aws/credentials")
        found = any(v in environ for v in _AWS_VARIABLES) or os.path.exists(known)
        yield Check("AWS credentials", found, "found" if found else "none found",
                    "export AWS_PROFILE=…, or use OIDC in CI")  # fmt: skip
    if any(n.uses.endswith(".hub") for n in pushes):
        found = "HF_TOKEN" in environ
        yield Check("Hub token", found, "set" if found else "HF_TOKEN is not set", "export HF_TOKEN=…")
