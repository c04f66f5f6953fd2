"""The server's life: reload, drain, and what it refuses to serve."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project
from tests.machines import Share, machine
from tests.serve import models
from tests.serve.models import Digits
from tests.serve.server import LONG, Answer, Server, ask, client, listening, refusal, running, serving

IMAGE = [[0.5] * 64]


@contextmanager
def under_load(server: Server) -> Iterator[list[Answer]]:
    """Ask all the time by 8 clients; afterwards the list holds every answer."""
    stop, answers = threading.Event(), []

    def send() -> None:
        with client(server.url) as connection:
            while not stop.is_set():
                answers.append(ask(connection, "POST", "/predict", IMAGE))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(send) for _ in range(8)]
        try:
            yield answers
        finally:
            stop.set()
        for future in asking:
            future.result()


def lead(place: Path, target: Path) -> Path:
    """Make the link `place` lead to the target, at once."""
    new = place.with_name("next")
    new.symlink_to(target)
    new.rename(place)
    return place


def digest(server: Server) -> str:
    found: str = server.ask("GET", f"/v2/models/{server.name}").json["parameters"]["digest"]
    return found


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_a_reload_fails_no_request_and_a_bad_artifact_is_refused(
    digits: Digits, other: Path, tmp_path: Path, kind: str
) -> None:
    place, damaged = lead(tmp_path / "current", digits.onnx), tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.onnx").write_bytes((other / "model.onnx").read_bytes()[:-1000])
    turns = (
        (other, "reload", 1),
        (damaged, "reload rejected", 1),
        (digits.onnx, "reload", 2),
        (digits.onnx, "reload", 3),
    )
    with serving(place, "--server", kind, folder=tmp_path) as server:
        with under_load(server) as answers:
            for target, event, count in turns:
                lead(place, target)
                server.signal(signal.SIGHUP)
                server.wait_for(event, count)
        assert digest(server) == server.digest
        figures = server.figures()
        refused = server.wait_for("reload rejected")
    results = ("swapped", "refused", "unchanged")
    assert [figures[f"serve_reloads_total {result}"] for result in results] == [2, 1, 1]
    assert {answer.status for answer in answers} == {200}
    assert {round(answer.json["outputs"]["output"][0][0], 3) for answer in answers} == {1.578, 2.578}
    assert refused["error"].startswith("onnxruntime can't load the model: ")


def test_a_model_that_answers_its_reference_samples_wrong_is_not_swapped_in(
    digits: Digits, other: Path, tmp_path: Path
) -> None:
    place = lead(tmp_path / "current", digits.onnx)
    with serving(place, "--reference", digits.bundle, "--watch", folder=tmp_path) as server:
        lead(place, other)
        said = server.wait_for("reload rejected")["error"]
        assert digest(server) == server.digest
    assert re.fullmatch(
        r"reference case 0: output 'output' differs by up to 1, more than the limit of 0\.\d+", said
    )


def test_an_output_of_a_pipeline_is_served_and_replaced_by_the_next_runs(
    digits: Digits, other: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    project.pipeline("model: {uses: run.command, inputs: {given: in.onnx}, outputs: {onnx: model.onnx}, "
                     "with: {command: 'cp $INPUT_GIVEN $OUTPUT_ONNX'}}")  # fmt: skip
    shutil.copy(digits.onnx / "model.onnx", project.folder / "in.onnx")
    project.write("model.onnx", "a file of the same name as the output")
    project.run()
    with serving("pipeline.yaml", "model.onnx", "--watch", folder=tmp_path, cwd=project.folder) as server:
        assert (server.name, digest(server)) == ("test", server.digest)
        shutil.copy(other / "model.onnx", project.folder / "in.onnx")
        project.run()
        server.wait_for("reload")
        assert digest(server) != server.digest


def test_an_output_that_another_machine_built_is_served(
    digits: Digits, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = Share(tmp_path / "share")
    project = Project(tmp_path / "project")
    project.pipeline("model: {uses: run.command, inputs: {given: in.onnx}, outputs: {onnx: model.onnx}, "
                     "with: {command: 'cp $INPUT_GIVEN $OUTPUT_ONNX'}}",
                     head="cache: {push: true}\n")  # fmt: skip
    shutil.copy(digits.onnx / "model.onnx", project.folder / "in.onnx")
    one, two = machine(project, share, "one"), machine(project, share, "two")
    project.run(**one)
    for name, value in two.items():
        monkeypatch.setenv(name, value)
    with serving("model.onnx", folder=tmp_path, cwd=project.folder) as server:
        assert digest(server) == server.digest
        shutil.copy(other / "model.onnx", project.folder / "in.onnx")
        project.run(**one)
        server.signal(signal.SIGHUP)
        server.wait_for("reload")
        assert digest(server) != server.digest


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_sigterm_answers_what_runs_and_ends_with_0(slow: Path, tmp_path: Path, kind: str) -> None:
    with serving(slow, "--server", kind, "--lame-duck-s", 1, folder=tmp_path) as server:
        with running(server) as answer:
            server.signal(signal.SIGTERM)
            server.wait_for("draining")
            ready = server.ask("GET", "/v2/health/ready")
            model = server.ask("GET", f"/v2/models/{server.name}/ready")
            taken = server.predict([[1, 2]])
        assert (ready.status, ready.headers["retry-after"]) == (503, "1")
        assert (model.status, model.json) == (503, {"name": server.name, "ready": False})
        assert taken.json == {"outputs": {"sum": [3.0]}}
        assert answer.result().json == {"outputs": {"sum": [LONG[0][0]]}}
        assert server.process.wait(60) == 0
    assert server.events()[-1]["event"] == "stopped"


def test_the_second_signal_ends_it_at_once(slow: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy_runner", "serve", str(slow), "--port", "0", "--json"]
    with listening(command, folder=tmp_path) as server:
        with running(server, [[1e8, 0.0]]) as answer:
            server.signal(signal.SIGTERM)
            server.wait_for("draining")
            server.signal(signal.SIGTERM)
            assert server.process.wait(60) == 130
        assert isinstance(answer.exception(), ConnectionError)


def test_a_sagemaker_package_is_served(digits: Digits, tmp_path: Path) -> None:
    from deploy_runner.testing import run_stage
    from tests.bundles import stage

    package = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs={"model": digits.onnx})["package"]
    with serving(package, folder=tmp_path / "s") as server:
        answer = server.ask("POST", "/invocations", IMAGE)
    assert round(answer.json["outputs"]["output"][0][0], 3) == 1.578


def test_external_data_is_served_but_not_through_a_link(tmp_path: Path) -> None:
    folder = models.matmul_with_external_data(tmp_path / "model")
    with serving(folder, folder=tmp_path) as server:
        assert server.predict([[1, 2, 3, 4]]).json == {"outputs": {"y": [[10.0] * 4]}}
    os.link(folder / "model.onnx.data", tmp_path / "elsewhere")
    said = (
        "model.onnx.data is a link; a model with external data must not contain links (replace it by a copy)"
    )
    assert refusal(folder) == f"error: {said}"


def test_a_bundle_of_a_strangers_file_is_served_by_its_own_description(tmp_path: Path) -> None:
    from deploy_runner.testing import run_stage
    from tests.bundles import stage

    folder = models.matmul_with_external_data(tmp_path / "model")
    bundle = run_stage(stage("model.onnx"), tmp_path / "b", inputs={"model": folder})["model"]
    with serving(bundle, folder=tmp_path) as server:
        assert server.predict([[1, 2, 3, 4]]).json == {"outputs": {"y": [[10.0] * 4]}}
        assert server.wait_for("model")["cases"] == 3


def archive(path: Path, name: str, kind: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


LINK = "the archive's member {!r} is a link, a device or outside the archive"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda t: t / "nothing.onnx", "nothing.onnx does not exist", id="nothing"),
        pytest.param(lambda t: t, "contains neither model.onnx nor model.json", id="an empty folder"),
        pytest.param(lambda t: archive(t / "m.tar.gz", "model.json", b"2"), LINK.format("model.json"), id="a link in an archive"),
        pytest.param(lambda t: archive(t / "m.tar.gz", "../x", b"5"), LINK.format("../x"), id="a name that leaves"),
        pytest.param(lambda t: written(t / "m.tar.gz", b"x"), "m.tar.gz can't be unpacked", id="no archive"),
        pytest.param(lambda t: written(t / "m.onnx", b"x"), "onnxruntime can't load the model", id="no ONNX"),
        pytest.param(lambda t: written(t / "m.onnx", b""), "m.onnx is empty", id="an empty file"),
        pytest.param(lambda t: written(t / "m.json", b"{}"), "m.json is not a model that can be served", id="no model"),
    ],
)  # fmt: skip
def test_what_cant_be_served_is_one_sentence(tmp_path: Path, make: Any, said: str) -> None:
    assert said in refusal(make(tmp_path))


def test_torchscript_needs_trust_and_names(digits: Digits) -> None:
    name = digits.torchscript.name
    assert (
        refusal(digits.torchscript)
        == f"error: {name} is TorchScript, which contains code (if you trust it: --trust)"
    )
    assert refusal(digits.torchscript, "--trust") == (
        f"error: the input names of {name} are unknown (--reference BUNDLE of model.prepare, or a model.json beside it)"
    )


def test_a_port_in_use_and_options_that_contradict_each_other_are_said(
    digits: Digits, used_port: int
) -> None:
    said = refusal(digits.onnx, "--port", used_port)
    assert said == f"error: 127.0.0.1:{used_port}: Address already in use (--port 0 takes a free port)"
    assert "max_samples 1024 is more than max_queue 8" in refusal(digits.onnx, "--max-queue", 8)


@pytest.mark.slow
def test_load_with_forty_reloads_leaves_the_memory_level(digits: Digits, other: Path, tmp_path: Path) -> None:
    import psutil

    place = lead(tmp_path / "current", digits.onnx)
    with serving(place, folder=tmp_path) as server:
        process, resident = psutil.Process(server.process.pid), []
        with under_load(server) as answers:
            for count, target in enumerate((other, digits.onnx) * 20, 1):
                lead(place, target)
                server.signal(signal.SIGHUP)
                server.wait_for("reload", count)
                resident.append(process.memory_info().rss)
    assert {answer.status for answer in answers} == {200}
    assert max(resident[20:]) < 1.1 * max(resident[:20])
