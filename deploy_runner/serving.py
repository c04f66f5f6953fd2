"""`serve`: start the inference server on a file, a folder, or an output of a pipeline.

The server is a process of its own, which imports nothing of the engine. For an output of a pipeline it is
given a folder with a link `current`, which leads to a copy of the output; when a later run has made
another, the copy of that is put beside it, the link is turned, and the server told to reload.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any

from .errors import DeployRunnerError, UsageError
from .record import read_record
from .verbs import artifact_of, find_output

if TYPE_CHECKING:
    from .api import Pipeline

__all__ = ["SERVER", "serve"]

SERVER = "deploy_runner.stages._server"
_PACKAGES = (
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
    "prometheus_client",
    "numpy",
    "onnxruntime",
)
_LOOK_S = 0.5
_PR_SET_PDEATHSIG = 1


def serve(path: str, names: Sequence[str], args: argparse.Namespace) -> int:
    """Serve until a signal; return the server's exit code.

    `names` is an existing path, or STAGE.OUTPUT of the pipeline at `path`.
    """
    _require_packages(args)
    if len(names) != 1:
        raise UsageError(
            "what is to be served?", fix="`deploy-runner serve PATH`, or `… serve PIPELINE STAGE.OUTPUT`"
        )
    given = {option.name: vars(args)[option.name] for option in _options() if option.name in vars(args)}
    if Path(names[0]).exists():
        command = _command(names[0], given)
        os.execv(command[0], command)
    if "/" in names[0] or names[0].endswith((".onnx", ".pt", ".gz", ".tgz")):
        raise UsageError(f"{names[0]} does not exist")
    from .api import load

    pipeline = load(path, config=args.config, sets=args.sets)
    with TemporaryDirectory(prefix="deploy-runner-serve-") as folder:
        return _Supervisor(pipeline, names[0], given, Path(folder)).run()


def _options() -> Sequence[Any]:
    options: Sequence[Any] = importlib.import_module(f"{SERVER}.options").OPTIONS
    return options


def _require_packages(args: argparse.Namespace) -> None:
    flask = ("flask", "waitress") if getattr(args, "server", "") == "flask" else ()
    missing = [name for name in (*_PACKAGES, *flask) if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}", fix="pip install 'deploy-runner[serve]'")


def _command(artifact: str, given: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return [sys.executable, "-m", SERVER, artifact, *flags]


class _Supervisor:
    """Puts an output of the last run where the server reads it, and does so again for later runs."""

    def __init__(self, pipeline: Pipeline, output: str, given: dict[str, Any], folder: Path) -> None:
        self._pipeline, self._output, self._folder = pipeline, output, folder
        self._reference = str(given.pop("reference", ""))
        self._watch = bool(given.pop("watch", False))
        self._given = {"name": pipeline.graph.name, **given}
        self._served: list[str] = []
        self._generation = 0
        self._wanted = False

    def run(self) -> int:
        """Start the server, pass signals on to it, and return its exit code."""
        artifact = self._folder / "current" / self._place()
        given = dict(self._given)
        if self._reference:
            outside = Path(self._reference).exists()
            given["reference"] = self._reference if outside else self._folder / "current" / "reference"
        server = subprocess.Popen(
            _command(str(artifact), given), process_group=0, preexec_fn=_end_with_parent
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            server.send_signal(number)

        def reload(number: int, frame: FrameType | None) -> None:
            self._wanted = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        signal.signal(signal.SIGHUP, reload)
        while True:
            try:
                return server.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                self._look(server)

    def _look(self, server: subprocess.Popen[bytes]) -> None:
        """Tell the server to reload where it was asked for, or where a later run made another output."""
        wanted, self._wanted = self._wanted, False
        if not (wanted or self._watch):
            return
        before = list(self._served)
        try:
            self._place()
        except DeployRunnerError as error:
            if wanted:
                print(f"reload refused: {error}", file=sys.stderr)
            return
        if wanted or self._served != before:
            server.send_signal(signal.SIGHUP)

    def _place(self) -> str:
        """Put the last run's output, and the reference, behind the link; return the output's file name."""
        record = read_record(self._pipeline.home)
        names = [self._output]
        if self._reference and not Path(self._reference).exists():
            names.append(self._reference)
        found = [find_output(record, name) for name in names]
        stage, output, _ = found[0]
        node = self._pipeline.graph.stages.get(stage)
        own = Path(node.outputs[output].path).name if node and output in node.outputs else output
        artifacts = [artifact_of(entry) for *_, entry in found]
        digests = [artifact.digest for artifact in artifacts]
        if digests == self._served:
            return own
        place = self._folder / f"generation-{self._generation}"
        place.mkdir()
        for artifact, name in zip(artifacts, (own, "reference"), strict=False):
            self._pipeline.store.materialise(artifact, place / name)
        self._turn(place)
        self._served = digests
        return own

    def _turn(self, place: Path) -> None:
        """Make the link lead to this copy, and remove the one before the last."""
        link = self._folder / "next"
        link.symlink_to(place.name)
        link.rename(self._folder / "current")
        shutil.rmtree(self._folder / f"generation-{self._generation - 2}", ignore_errors=True)
        self._generation += 1


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
