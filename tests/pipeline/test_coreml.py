"""coreml.convert: names, types and sizes are read back here; what it computes only a Mac can say.

Importing coremltools takes half a minute on a busy machine, so all that converts is slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import StageError
from deploy_runner.stages.coreml import packaged
from deploy_runner.stages.model.bundles import load_bundle
from deploy_runner.testing import StageRun
from tests.bundles import CASES, line_of
from tests.bundles import bundle as bundle_of
from tests.conftest import DIGITS, Project
from tests.pipeline.nets import prepare, run
from tests.pipeline.strange_nets import NETS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def convert(folder: Path, model: Path, **params: Any) -> StageRun:
    return run("coreml.convert", folder, inputs={"model": model}, params=params)


def described(package: Path) -> dict[str, list[Any]]:
    """Return what a package says of its inputs: type, and smallest and largest size of each axis."""
    from coremltools import utils

    arrays = {f.name: f.type.multiArrayType for f in utils.load_spec(str(package)).description.input}
    return {
        name: [array.dataType, *((r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges)]
        for name, array in arrays.items()
    }


def test_a_package_is_never_taken_for_proven(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    (tmp_path / "model.mlpackage/Manifest.json").write_text("{}")
    pair = {"candidate": tmp_path / "model.mlpackage", "reference": bundle}
    with pytest.raises(StageError, match="a Core ML package can't be run here: Core ML runs on macOS alone"):
        run("verify.parity", tmp_path, inputs=pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", *CASES])
def test_names_types_and_sizes_are_the_originals(tmp_path: Path, name: str) -> None:
    bundle = bundle_of(tmp_path, name)["model"]
    made = convert(tmp_path, bundle, largest={"batch": 40})
    assert made.figures["status"].startswith("converted, not proven: Core ML runs on macOS alone")
    assert not made.figures.keys() & {"max_abs", "cosine", "argmax_agreement"}
    found = described(made["model"])
    for port in load_bundle(bundle).inputs:
        kind, *ranges = found[port.name]
        assert kind == (131104 if port.dtype == "int64" else 65568)
        assert [i for i, (low, high) in enumerate(ranges) if low != high] == list(port.dynamic)
        assert ranges[0] == (1, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrent", "two inputs of free sizes", "detector", "timm"])
def test_so_are_those_of_strangers(tmp_path: Path, name: str) -> None:
    source, example, params = NETS[name]
    bundle = load_bundle(prepare(tmp_path, source, example, **params)["model"])
    made = convert(tmp_path, bundle.folder)
    assert list(described(made["model"])) == bundle.input_names
    half = convert(tmp_path / "half", bundle.folder, precision="float16")
    assert (half["model"] / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size < (
        made["model"] / "Data/com.apple.CoreML/weights/weight.bin"
    ).stat().st_size


@pytest.mark.slow
def test_another_models_package_is_refused(tmp_path: Path) -> None:
    two, mlp = (load_bundle(bundle_of(tmp_path, name)["model"]) for name in ("two", "mlp"))
    package = convert(tmp_path, two.folder)["model"]
    with pytest.raises(StageError, match="the package has the inputs left, right"):
        packaged.check_ports(mlp, package)


@pytest.mark.slow
def test_what_core_ml_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=f"depends on its data at {line_of('if x.sum')}") as error:
        convert(tmp_path, bundle_of(tmp_path, "branch")["model"])
    assert "torch.where" in error.value.fix
    source, example, params = NETS["an output twice, and the input"]
    with pytest.raises(StageError, match="coremltools can't convert the model: .*'same'"):
        convert(tmp_path / "same", prepare(tmp_path, source, example, **params)["model"])
    with pytest.raises(StageError, match="largest: the model has no dynamic axis 'height', only batch"):
        convert(tmp_path / "largest", bundle_of(tmp_path, "mlp")["model"], largest={"height": 3})


MAC = '''
import numpy, os
class ComputeUnit: CPU_ONLY = 0
class models:
    class MLModel:
        """Core ML as the reference has it; by WRONG with another sign."""
        def __init__(self, path, compute_units):
            assert open(os.path.join(path, "Manifest.json"))
            self.cases = numpy.load("proof/reference.npz")
        def predict(self, inputs):
            assert all(array.dtype in ("f4", "i4") for array in inputs.values())
            (case,) = {name.split("/")[0] for name in self.cases.files for given in inputs
                       if name.endswith(f"/in/{given}") and self.cases[name].shape == inputs[given].shape}
            sign = -1 if os.environ.get("WRONG") == case else 1
            return {name.split("/")[2]: sign * self.cases[name] for name in self.cases.files if name.startswith(f"{case}/out/")}
'''


@pytest.mark.slow
def test_a_pipeline_gives_the_same_bytes_and_what_proves_them(tmp_path: Path) -> None:
    digests = []
    for place in ("one", "another place"):
        project = Project(tmp_path / place)
        shutil.copytree(DIGITS, project.folder / "digits")
        project.pipeline("""
            weights: {uses: checkpoint.state_dict, inputs: {checkpoint: digits/digits.pt}}
            model:
              uses: model.prepare
              inputs: {weights: "${{ stages.weights.outputs.weights }}"}
              with: {factory: "digits/model.py:build", example: {shape: [1, 1, 8, 8]}}
            phone: {uses: coreml.convert, inputs: {model: "${{ stages.model.outputs.model }}"}}
        """)
        digests.append(project.run()["stages"]["phone"]["artifacts"])
    assert digests[0] == digests[1]
    for output, folder in (("model", "model.mlpackage"), ("proof", "proof")):
        project.cli("get", f"phone.{output}", "--to", folder)
    project.write("mac/coremltools.py", MAC)
    assert compared(project.folder) == (0, ["ok  ", "ok  ", "ok  "])
    assert compared(project.folder, WRONG="batch2") == (1, ["ok  ", "FAIL", "ok  "])


def compared(folder: Path, **more: str) -> tuple[int, list[str]]:
    """Run what compares on a Mac with a stand-in for Core ML; return the exit code and the verdicts."""
    done = subprocess.run(
        [sys.executable, "proof/compare_on_mac.py", "model.mlpackage"], cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": "mac", **more}, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads((folder / "proof/limits.json").read_text()).keys() == {"batch1", "batch2", "batch5"}
    return done.returncode, [line[:4] for line in sorted(done.stdout.splitlines(), key=lambda line: line[5:])]
