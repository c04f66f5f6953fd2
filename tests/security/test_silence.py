"""Nothing leaves the machine: no library reports its use, in a run, in serve, in a container or a package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serve import models
from tests.serve.packed import write_code

WATCH = Path(__file__).with_name("watch.c")
MAKERS = {"Microsoft", "intel"}
LONG_S = 25
"""onnxruntime 1.32 reports first after 20 s."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("watch") / "watch.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, WATCH, "-ldl"], check=True)
    return made


def _seen(
    watched: Path, folder: Path, code: str, *arguments: object, python: str = sys.executable, **more: str
) -> tuple[str, list[str]]:
    """Run code for a while; return what it looked up or connected to, and what it wrote in HOME."""
    home = folder / "home"
    home.mkdir(parents=True)
    log = folder / "log"
    environment: Mapping[str, str] = {
        "PATH": os.environ["PATH"], "HOME": str(home), "LD_PRELOAD": str(watched), "WATCH_LOG": str(log), **more,
    }  # fmt: skip
    subprocess.run(
        [python, "-c", f"{code}\nimport time; time.sleep({LONG_S})", *map(str, arguments)],
        env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    written = [
        str(path.relative_to(home)) for path in home.rglob("*") if MAKERS & {*path.relative_to(home).parts}
    ]
    return log.read_text() if log.exists() else "", written


BARE = "import sys, onnxruntime\nsession = onnxruntime.InferenceSession(sys.argv[1] + '/model.onnx')"
SERVED = """
import sys, argparse
from deploy_runner.server.model import load
from deploy_runner.server.options import add_options, read_settings
parser = argparse.ArgumentParser()
parser.add_argument("artifact")
add_options(parser)
model = load(read_settings(vars(parser.parse_args([sys.argv[1]])), {}), 1)
"""
PACKED = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location("inference", sys.argv[2])
code = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code)
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + '/model.onnx')
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [SERVED, PACKED], ids=["serve", "package"])
def test_nothing_is_reported(watched: Path, tmp_path: Path, code: str) -> None:
    model = models.scorer(tmp_path / "model")
    assert _seen(watched, tmp_path, code, model, write_code(model)) == ("", [])


@pytest.mark.slow
def test_the_watch_sees_what_a_bare_session_reports(watched: Path, tmp_path: Path) -> None:
    """And whoever asks for reports gets them: the environment's own value stays."""
    model = models.scorer(tmp_path / "model")
    seen, written = _seen(watched, tmp_path / "bare", BARE, model)
    assert "lookup" in seen
    assert written
    seen, _ = _seen(watched, tmp_path / "wanted", SERVED, model, ORT_DISABLE_TELEMETRY="0")
    assert "lookup" in seen


def test_stages_are_told_to_be_silent(tmp_path: Path) -> None:
    from tests.conftest import Project

    project = Project(tmp_path)
    command = "env | grep -E 'TELEMETRY|USAGE_STATS|TRACK|NNCF' | sort > $OUTPUT_FOUND"
    project.pipeline(
        f'a: {{uses: run.command, with: {{command: "{command}"}}, outputs: {{found: found.txt}}}}'
    )
    project.run()
    assert project.output("a") == (
        b"DO_NOT_TRACK=1\nHF_HUB_DISABLE_TELEMETRY=1\nMLFLOW_DISABLE_TELEMETRY=true\nNNCF_CI=1\n"
        b"ORT_DISABLE_TELEMETRY=1\nRAY_USAGE_STATS_ENABLED=0\n"
    )


REPORTING = """
from deploy_runner.sdk import Output, File, Stage, StageInputs, StageOutputs, StageParams

class Reporting(Stage):
    \"\"\"Import what reports.\"\"\"

    uses = "own.reporting"
    packages = ("openvino-telemetry",)

    class Outputs(StageOutputs):
        out: File = Output("out.txt")

    def run(self, ctx, params, inputs, outputs):
        import openvino_telemetry
"""


def test_what_reports_and_knows_no_variable_is_hidden(tmp_path: Path) -> None:
    from tests.conftest import Project

    project = Project(tmp_path / "project")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/openvino_telemetry.py").touch()
    project.env["PYTHONPATH"] = str(tmp_path / "site")
    project.write("stages/reporting.py", REPORTING)
    project.pipeline("a: {uses: own.reporting}")
    assert "FAIL openvino_telemetry: missing" in project.cli("doctor", exits=1).stdout
    assert "openvino_telemetry" in project.run(exits=1)["stages"]["a"]["error"]


OPENVINO = """
openvino.convert_model(sys.argv[1] + "/model.onnx")
import numpy, nncf
data = nncf.Dataset([{"ids": numpy.ones((1, 2), "i8"), "weights": numpy.ones((1, 2), "f4")}])
nncf.quantize(openvino.convert_model(sys.argv[1] + "/model.onnx"), data)
"""
AS_STAGES_DO = "import sys, deploy_runner, openvino"


@pytest.mark.slow
def test_openvino_reports_nothing_to_its_maker(watched: Path, tmp_path: Path, openvino_python: Path) -> None:
    """Bare, importing it is reported."""
    model, python = models.scorer(tmp_path / "model"), str(openvino_python)
    silent = _seen(watched, tmp_path / "silent", AS_STAGES_DO + OPENVINO, model, python=python)
    assert silent == ("", [])
    seen, written = _seen(watched, tmp_path / "bare", "import sys, openvino" + OPENVINO, model, python=python)
    assert "lookup" in seen
    assert "intel/openvino_ga_cid" in written
