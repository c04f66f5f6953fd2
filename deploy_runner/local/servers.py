"""Start the servers of a dry run for the time of one stage, empty each time."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import StageError

__all__ = ["dry_run"]

_START_S = 60.0


@contextmanager
def dry_run(
    folder: Path,
    *,
    services: Sequence[str],
    log: Callable[[str], None],
    images: Mapping[str, Path] | None = None,
) -> Iterator[Mapping[str, str]]:
    """Start "aws", "hub" and/or "oci" on free ports of loopback; yield the environment that leads there.

    `images` are the contexts of package.container by the names of the images that "aws" has, `*` for any.
    "mlflow" is no server but a folder in the stage's own, which MLflow's client takes for one. The servers'
    state is below `folder`, and they end with the block, or with this process in whatever way it ends.
    Raises StageError where one can't start.
    """
    folder.mkdir(parents=True)
    commands = {
        "aws": [
            "deploy_runner.local.aws",
            *(f"--image={name}={path}" for name, path in (images or {}).items()),
        ],
        "hub": ["deploy_runner.local.hub", "--root", str(folder / "hub")],
        "oci": ["deploy_runner.local.oci", "--root", str(folder / "oci")],
    }
    known = sorted((*commands, "mlflow"))
    if unknown := [name for name in services if name not in known]:
        raise StageError(f"services: there is no local server {unknown[0]!r}, only {', '.join(known)}")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(_process(commands[name], folder / f"{name}.log"))
            for name in services
            if name in commands
        }
        env = {"DRY_RUN_MLFLOW": "mlflow"} if "mlflow" in services else {}
        for name, process in processes.items():
            url = _address(name, process, folder / f"{name}.log")
            log(f"the local {name} listens on {url}")
            env |= _environment(name, url)
        yield env


@contextmanager
def _process(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-sP", "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _address(name: str, process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(_START_S)
    line = process.stdout.readline() if ready else ""
    try:
        return str(json.loads(line)["url"])
    except ValueError:
        said = log.read_text("utf-8").strip().rpartition("\n")[2] or "it printed nothing"
        fix = "pip install 'deploy-runner[sagemaker]'" if "No module named" in said else ""
        raise StageError(f"the local {name} of the dry run can't start: {said}", fix=fix) from None


def _environment(name: str, url: str) -> dict[str, str]:
    if name == "oci":
        return {"OCI_REGISTRY": url.removeprefix("http://")}
    if name == "hub":
        return {
            "HF_ENDPOINT": url,
            "HF_TOKEN": "hf_dry_run",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "dry-run",
        "AWS_SECRET_ACCESS_KEY": "dry-run",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
