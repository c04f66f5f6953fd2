"""The commands `plan`, `run` and `explain` as functions.

The package `deploy_runner` exports `load`, `plan`, `run`, `explain` and `Pipeline`:

    import deploy_runner

    pipeline = deploy_runner.load("pipeline.yaml", sets=["vars.opset=20"])
    print(deploy_runner.plan(pipeline).actions)
    record = deploy_runner.run(pipeline, ["onnx"])
    print(record.stages["onnx"]["figures"])
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from .engine.runs import Recorder, RunRecord
from .engine.targets import require_target
from .errors import DeployRunnerError
from .pipeline.compiled import compile_pipeline
from .pipeline.identity import Files, identity
from .store.files import write_atomic
from .store.namespace import configured_home, own_home, protected_home
from .types import Event, Graph, RemoteSpec, RunOptions, StageResult

if TYPE_CHECKING:
    from .engine.execute.fork import ForkServer
    from .engine.plan import Explanation, Plan, Planner
    from .store.cas import Store

__all__ = ["Pipeline", "explain", "home_of", "load", "place_of", "plan", "run"]

_AS_USUAL = RunOptions()

_INTERRUPTED = 130


class Pipeline:
    """A compiled pipeline and the store that keeps its artifacts.

    `graph` has the stages, `home` is the store's folder, `files` identifies the pipeline in the run
    history, `environ` is the environment that it was compiled with. `note` is told, outside a run, what the
    user should know of a shared cache.
    """

    def __init__(
        self,
        graph: Graph,
        home: Path,
        files: Files,
        environ: Mapping[str, str],
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.graph = graph
        self.home = home
        self.files = files
        self.environ = environ
        self.note = note or (lambda sentence: None)

    @cached_property
    def store(self) -> Store:
        """The store; the first access creates its folder."""
        from .store.opening import open_store

        opened = open_store(
            self.home,
            protected=protected_home(self.home, self.environ),
            remote=self.remote,
            environ=self.environ,
        )
        opened.begin(self.note)
        return opened

    @property
    def remote(self) -> RemoteSpec | None:
        """The shared cache: `DEPLOY_RUNNER_REMOTE`, where that is set, else the pipeline's."""
        url = self.environ.get("DEPLOY_RUNNER_REMOTE", self.graph.cache.url)
        return self.graph.cache._replace(url=url) if url else None

    def planner(self) -> Planner:
        """Return a new planner, which reads every input again."""
        from .engine.plan import Planner

        return Planner(self.graph, self.store, self.files)


def home_of(pipeline: Path, environ: Mapping[str, str]) -> Path:
    """Return the store's folder: `DEPLOY_RUNNER_HOME`, or `.deploy-runner` beside the YAML.

    A pull request on GitHub gets a separate folder inside it.
    """
    return own_home(configured_home(pipeline.absolute().parent, environ), environ)


def place_of(pipeline: str, config: Sequence[str]) -> tuple[Path, Files]:
    """Return a pipeline's store folder and the files that identify its runs, without reading the pipeline."""
    path = Path(pipeline)
    home = home_of(path, os.environ)
    return home, identity(path, [Path(overlay) for overlay in config], home)


def load(
    pipeline: str | os.PathLike[str] = "pipeline.yaml",
    *,
    config: Sequence[str | os.PathLike[str]] = (),
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    on_compile: Callable[[], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Pipeline:
    """Read and check a pipeline with its overlays (`config`) and `--set` expressions (`sets`).

    Raises SpecError with every problem of the file, or UsageError if the file does not exist. An
    invalid pipeline writes nothing. `on_compile` is called before compilation starts; it is not called
    if the compiled pipeline is in the store. `note` is called with each sentence about a shared cache;
    during a run, such sentences are events.
    """
    environ = os.environ if environ is None else environ
    path = Path(pipeline)
    home = home_of(path, environ)
    overlays = [Path(overlay) for overlay in config]
    graph = compile_pipeline(
        path, overlays=overlays, sets=list(sets), environ=environ, home=home, on_compile=on_compile
    )
    return Pipeline(graph, home, identity(path, overlays, home), environ, note)


def plan(pipeline: Pipeline, stages: Sequence[str] = ()) -> Plan:
    """Return what a run would do now, in order, without doing it.

    Raises SpecError with everything that a live target lacks for the pushes among `stages`.
    """
    require_target(pipeline.graph, stages, pipeline.environ)
    return pipeline.planner().plan(list(stages) or None)


def explain(pipeline: Pipeline, stage: str) -> Explanation:
    """Return why `stage` would be a cache hit or a miss, with every changed component of its key."""
    return pipeline.planner().explain(stage)


def run(
    pipeline: Pipeline,
    stages: Sequence[str] = (),
    options: RunOptions = _AS_USUAL,
    *,
    on_event: Callable[[Event], None] | None = None,
    early: ForkServer | None = None,
) -> RunRecord:
    """Run every stage that is out of date among `stages` and their dependencies; return the run's record.

    Without `stages` the whole pipeline is run. A stage's failure is recorded, not raised: see
    `record.exit_code`. `on_event` receives every event in order; `early` is a fork server that was started
    in advance. Raises SpecError as `plan` does, UsageError for an unknown stage or, with `require_sandbox`,
    on a machine that can't confine a stage fully, and StoreError if the store can't be written.
    """
    from .engine.execute.interrupts import Interrupts
    from .engine.execute.loop import execute

    require_target(pipeline.graph, stages, pipeline.environ)
    started_s = time.time()
    with pipeline.store.hold(), Interrupts() as interrupts:
        recorder = Recorder(
            pipeline.home,
            pipeline.graph,
            pipeline.files,
            now_s=started_s,
            targets=stages,
            environ=pipeline.environ,
        )

        emitting = Lock()

        def emit(event: Event) -> None:
            with emitting:  # Transfers of a shared cache report from threads of their own.
                recorder(event)
                if on_event is not None:
                    on_event(event)

        pipeline.store.begin(lambda sentence: emit(Event("run-note", time.time(), text=sentence)))
        try:
            results = execute(
                pipeline.graph,
                pipeline.planner(),
                pipeline.store,
                options,
                targets=list(stages) or None,
                emit=emit,
                run_folder=recorder.folder,
                interrupts=interrupts,
                environ=pipeline.environ,
                early=early,
            )
            exit_code = _INTERRUPTED
            try:
                if not interrupts.come:
                    with interrupts.raising():
                        pipeline.store.finish()
                    exit_code = _exit_code(results)
            except DeployRunnerError as error:
                exit_code = error.exit_code
                raise
            finally:  # What is made is made, whether it was sent or not.
                record = recorder.finish(results, now_s=time.time(), exit_code=exit_code)
        finally:
            pipeline.store.begin(pipeline.note)
        if any(result.state != "hit" for result in results.values()):
            _write_report(pipeline, record)
    return record


def _exit_code(results: Mapping[str, StageResult]) -> int:
    if any(result.state == "interrupted" for result in results.values()):
        return _INTERRUPTED
    failed = [r.exit_code or 1 for r in results.values() if r.state == "failed"]
    return max(failed, default=0)


def _write_report(pipeline: Pipeline, record: RunRecord) -> None:
    from .report import html
    from .report.material import material_of

    material = material_of(record, pipeline.graph, pipeline.store)
    page = html.render(record, pipeline.graph, material)
    write_atomic(record.folder / "report.html", page.encode(errors="replace"), tmp=pipeline.home / "tmp")
