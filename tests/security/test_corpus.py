"""No file from outside runs code or leaves its place; no honest file is refused."""

from __future__ import annotations

import io
import os
import resource
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy_runner.errors import DeployRunnerError, GateError
from deploy_runner.server.archives import BadArchive, unpack
from deploy_runner.testing import run_stage
from tests.bundles import bundle, stage
from tests.conftest import ROOT, Project
from tests.security.corpus import samples
from tests.security.samples import Place, Sample

SAMPLES = samples()
SECRET = b"0123456789abcdef the secret outside"
_MEMBERS, _TIMES, _BYTES = 20_000, 80, 256 << 20


@pytest.fixture(scope="module")
def enough_s() -> float:
    """What may be spent on a file: as much CPU as listing 1,600,000 members of a zip costs on this machine."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for index in range(_MEMBERS):
            archive.writestr(f"{index}", b"")
    started = time.process_time()
    zipfile.ZipFile(content).close()
    return _TIMES * (time.process_time() - started)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "given"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    return Place(folder, tmp_path / "canary", tmp_path / "secret")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest model's weights, in a folder with its code."""
    folder = tmp_path_factory.mktemp("honest")
    return bundle(folder, "mlp")["model"] / "weights.safetensors"


def give(sample: Sample, path: Path, made: Path, weights: Path) -> None:
    """Give the file to the stage type that takes such files."""
    if sample.kind == "checkpoint":
        run_stage(stage("checkpoint.state_dict"), made, inputs={"checkpoint": path})
    elif sample.kind == "onnx":
        run_stage(stage("onnx.check"), made, inputs={"model": path})
    elif sample.kind == "archive":
        try:
            unpack(path, made / "unpacked")
        except BadArchive as error:
            raise GateError(str(error)) from None
    else:
        params = {"factory": "models.py:mlp", "example": {"shape": [1, 64]}}
        inputs = {"weights": weights, "samples": path}
        run_stage(stage("model.prepare"), made, inputs=inputs, params=params, project=ROOT / "tests/models")


IN_PROCESS = [s for s in SAMPLES if s.kind not in ("yaml", "overlay")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sample", IN_PROCESS, ids=[s.name for s in IN_PROCESS])
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(
    sample: Sample, place: Place, tmp_path: Path, weights: Path, enough_s: float
) -> None:
    path = sample.make(place)
    with cheaply_refused(enough_s):
        give(sample, path, tmp_path / "made", weights)
    assert_untouched(place, tmp_path / "made")


MODELS = [s for s in SAMPLES if s.kind == "onnx"]


@pytest.mark.parametrize("sample", MODELS, ids=[s.name for s in MODELS])
def test_a_malicious_file_is_no_model_to_start_from(
    sample: Sample, place: Place, tmp_path: Path, enough_s: float
) -> None:
    path = sample.make(place)
    with cheaply_refused(enough_s):
        run_stage(stage("model.onnx"), tmp_path / "made", inputs={"model": path})
    assert_untouched(place, tmp_path / "made")


@contextmanager
def cheaply_refused(enough_s: float) -> Iterator[None]:
    """Assert that a file is refused in one short line, without much time and memory."""
    before = forget_peak_bytes()
    started = time.process_time()
    with pytest.raises(DeployRunnerError, match=r"\A[^\n]+\Z") as error:
        yield
    assert len(error.value.message) < 500
    assert time.process_time() - started < enough_s, "it cost too much time"
    assert memory_bytes("VmHWM") - before < _BYTES, "it cost too much memory"


def memory_bytes(name: str) -> int:
    """Return one of this process's figures in /proc/self/status."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def forget_peak_bytes() -> int:
    """Begin to measure the peak of this process's memory anew (proc(5)); return what it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def test_the_peak_of_memory_is_measured() -> None:
    before = forget_peak_bytes()
    del (spent := [bytearray(b"x") * (64 << 20)])[:]
    assert not spent
    assert memory_bytes("VmHWM") - before > 60 << 20
    assert forget_peak_bytes() < before + (32 << 20)


def assert_untouched(place: Place, made: Path) -> None:
    assert not place.canary.exists()
    assert place.secret.read_bytes() == SECRET
    for path in made.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes(), f"{path} holds bytes from outside"


TEXTS = [s for s in SAMPLES if s.kind in ("yaml", "overlay")]


@pytest.mark.parametrize("sample", TEXTS, ids=[s.name for s in TEXTS])
def test_a_malicious_pipeline_is_refused_with_its_place(
    sample: Sample, place: Place, project: Project, enough_s: float
) -> None:
    given = place._replace(folder=project.folder)
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    sample.make(given)
    config = ["--config", "overlay.yaml"] if sample.kind == "overlay" else []
    process = project.start("validate", *config)
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (_BYTES, _BYTES))
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()
    assert process.returncode == 2, said
    assert used.ru_utime + used.ru_stime < enough_s
    assert ".yaml" in said
    assert len(said) < 5000
    assert "Traceback" not in said
    assert project.cli("run", *config, exits=2).returncode == 2
    assert not given.canary.exists()


def test_the_corpus_has_at_least_150_samples_with_names_of_their_own() -> None:
    assert len(SAMPLES) >= 150
    assert len({s.name for s in SAMPLES}) == len(SAMPLES)
    assert {s.kind for s in SAMPLES} == {"checkpoint", "onnx", "arrays", "archive", "yaml", "overlay"}


def test_the_canary_would_sing(place: Place) -> None:
    """The samples are live: read by pickle itself, one of them touches its canary."""
    import pickle

    from tests.security.pickles import reduce_

    pickle.loads(reduce_("posix", "system", f"touch {place.canary}"))
    assert place.canary.exists()
