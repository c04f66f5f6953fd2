"""`serve`: start the inference server on a file, a folder, or an output of a pipeline.

The server is a process of its own, which imports nothing of the engine. For an output of a pipeline it is
given a folder with a link `current`, which leads to a copy of the output; when a later run has made
another, the copy of that is put beside it, the link is turned, and the server told to reload.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated, Any, NamedTuple, Self

from ..engine.runs import recorded_runs
from ..errors import DeployRunnerError, UsageError, closest_path
from ..server.options import OPTIONS, add_options
from .downloads import bring
from .options import DEFAULT_PIPELINE, Selection
from .results import RUN_INSTEAD, find_output

__all__ = ["SERVER", "Serve"]

SERVER = "deploy_runner.server"
_BESIDE = ("reference", "io")
"""Options that name an output, or a path."""
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


class ServerOptions(NamedTuple):
    """The server's own options that are given; the others stay as the server has them."""

    given: Mapping[str, Any]

    @classmethod
    def declare(cls, parser: argparse.ArgumentParser, help: str) -> None:  # noqa: A002
        """Add what the server declares."""
        add_options(parser)

    @classmethod
    def take(cls, values: Mapping[str, Any]) -> Self:
        """Return those of the values that are the server's and given."""
        return cls({o.name: values[o.name] for o in OPTIONS if o.name in values})


class Serve(NamedTuple):
    """Serve a model over HTTP, with batching and hot reload."""

    selection: Annotated[
        Selection,
        "STAGE or STAGE.OUTPUT that is up to date; or the path of an ONNX artifact, "
        "a model.tar.gz, a TorchScript file, a package of torch.aot or a container's context",
    ]
    options: ServerOptions
    run: Annotated[str, RUN_INSTEAD] = ""

    def __call__(self) -> int:
        """Serve until a signal, and return the server's exit code."""
        given = dict(self.options.given)
        _require_packages(str(given.get("server", "")))
        *pipeline, name = self.selection.words or ("",)
        if len(pipeline) > 1 or not name:
            raise UsageError(
                "serve needs a model", fix="`deploy-runner serve PATH`, or `… serve PIPELINE STAGE.OUTPUT`"
            )
        if not pipeline and Path(name).exists():
            command = _command(name, given)
            os.execv(command[0], command)
        if not pipeline and _is_file(name) and not self._has_stage(name.partition(".")[0]):
            raise UsageError(f"{name} does not exist", fix=closest_path(name))
        selection = self.selection._replace(words=(*(pipeline or (DEFAULT_PIPELINE,)), name))
        with TemporaryDirectory(prefix="deploy-runner-serve-") as folder:
            return _Supervisor(selection, self.run, given, Path(folder)).run()

    def _has_stage(self, name: str) -> bool:
        """Say whether the default pipeline has a stage of this name."""
        return (
            Path(DEFAULT_PIPELINE).exists() and name in self.selection._replace(words=()).load().graph.stages
        )


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith((".onnx", ".pt", ".pt2", ".gz", ".tgz"))


def _require_packages(server: str) -> None:
    flask = ("flask", "waitress") if server == "flask" else ()
    missing = [name for name in (*_PACKAGES, *flask) if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}", fix="pip install 'deploy-runner[serve]'")


def _command(artifact: str, given: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return [sys.executable, "-P", "-m", SERVER, artifact, *flags]


class _Supervisor:
    """Puts an output that is up to date where the server reads it, and does so again after later runs."""

    def __init__(self, selection: Selection, run: str, given: dict[str, Any], folder: Path) -> None:
        self._selection, self._run, self._folder = selection, run, folder
        self._pipeline = selection.load()
        self._seen = self._last_run()
        beside = {name: str(given.pop(name)) for name in _BESIDE if given.get(name)}
        self._outside = {name: said for name, said in beside.items() if Path(said).exists()}
        self._beside = {name: said for name, said in beside.items() if name not in self._outside}
        self._watch = bool(given.pop("watch", False))
        self._given = {"name": self._pipeline.graph.name, **given}
        self._served: list[str] = []
        self._generation = 0
        self._wanted = False

    def run(self) -> int:
        """Start the server, pass signals on to it, and return its exit code."""
        artifact = self._folder / "current" / self._place()
        placed = {name: self._folder / "current" / name for name in self._beside}
        given = {**self._given, **self._outside, **placed}
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
        last = self._last_run() if self._watch else self._seen
        if not wanted and last == self._seen:
            return
        self._seen = last
        before = list(self._served)
        try:
            self._pipeline = self._selection.load()
            self._place()
        except DeployRunnerError as error:
            if wanted:
                print(f"reload rejected: {error}", file=sys.stderr)
            return
        if wanted or self._served != before:
            server.send_signal(signal.SIGHUP)

    def _last_run(self) -> str:
        runs = recorded_runs(self._pipeline.home, self._pipeline.files)
        return next((record.id for record in runs), "")

    def _place(self) -> str:
        """Put the output, and those beside it, behind the link; return the output's file name."""
        names = [self._selection.names[0], *self._beside.values()]
        with self._pipeline.store.hold():
            found = [find_output(self._pipeline, name, self._selection, self._run) for name in names]
            digests = [output.artifact.digest for output in found]
            if digests == self._served:
                return found[0].file
            bring(self._pipeline.store, [output.needed for output in found])
            place = self._folder / f"generation-{self._generation}"
            place.mkdir()
            for output, name in zip(found, (found[0].file, *self._beside), strict=True):
                self._pipeline.store.materialise(output.artifact, place / name)
        self._turn(place)
        self._served = digests
        return found[0].file

    def _turn(self, place: Path) -> None:
        """Make the link lead to this copy, and remove the one before the last."""
        link = self._folder / "next"
        link.symlink_to(place.name)
        link.rename(self._folder / "current")
        shutil.rmtree(self._folder / f"generation-{self._generation - 2}", ignore_errors=True)
        self._generation += 1


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
