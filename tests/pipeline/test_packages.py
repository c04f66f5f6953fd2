"""package.sagemaker on the digits example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploy_runner.errors import StageError
from deploy_runner.server.archives import unpack
from deploy_runner.server.handlers import Handlers
from deploy_runner.stages.package import smoke
from deploy_runner.stages.package.sagemaker import own_modules
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import HELD
from tests.serve import scripts
from tests.serve.packed import loaded_code


def test_a_package_is_reproducible_and_has_the_containers_layout(
    tmp_path: Path, int8: Path, bundle: Path
) -> None:
    made = []
    for name in ("one", "two"):
        before = os.umask(0o077 if name == "two" else 0o022)
        inputs = {"model": int8, "reference": bundle}
        made.append(
            run_stage(stage("package.sagemaker"), tmp_path / name, inputs=inputs)["package"].read_bytes()
        )
        os.umask(before)
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "one/outputs/model.tar.gz") as tar:
        members = {m.name: m for m in tar}
    assert sorted(members) == [
        "code",
        "code/handlers.py",
        "code/inference.py",
        "code/requirements.txt",
        "code/runtime",
        "code/runtime/__init__.py",
        "code/runtime/devices.py",
        "code/runtime/problems.py",
        "config.yaml",
        "deployment.py",
        "model.json",
        "model.onnx",
    ]
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members.values()} == {(0, 0, "", 0)}


def test_a_package_that_the_container_would_reject_fails(tmp_path: Path, int8: Path, bundle: Path) -> None:
    code = tmp_path / "inference.py"
    code.write_text("def model_fn(model_dir):\n    return None\n")
    inputs = {"model": int8, "reference": bundle, "code": code}
    with pytest.raises(
        StageError, match=r"fails when it answers a request: AttributeError: 'NoneType' object"
    ):
        run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model_fn(:\n", "fails when it is imported: SyntaxError"),
        ("def model_fn(d): return open(d + '/x')\ninput_fn = predict_fn = output_fn = model_fn", "fails when it calls model_fn: FileNotFoundError"),
        ("def model_fn(d): pass\ndef input_fn(b, k): return 1 / 0\npredict_fn = output_fn = model_fn", "fails when it answers a request: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_code_that_fails_in_the_container_is_one_sentence(
    tmp_path: Path, int8: Path, bundle: Path, text: str, said: str
) -> None:
    (tmp_path / "inference.py").write_text(text)
    inputs = {"model": int8, "reference": bundle, "code": tmp_path / "inference.py"}
    with pytest.raises(StageError, match=said):
        run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs)


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/x-npy"])
def test_the_packages_own_code_answers_every_content_type(
    tmp_path: Path, fp32: Path, bundle: Path, kind: str
) -> None:
    import io

    package = run_stage(stage("package.sagemaker"), tmp_path, inputs={"model": fp32, "reference": bundle})[
        "package"
    ]
    unpack(package, tmp_path / "x")
    code = loaded_code(tmp_path / "x")
    with np.load(HELD) as held:
        sample = held["x"][:2]
    buffer = io.BytesIO()
    np.save(buffer, sample)
    csv = "\n".join(",".join(map(str, row)) for row in sample.reshape(2, -1))
    bodies = {
        "application/json": json.dumps(sample.tolist()).encode(),
        "text/csv": csv.encode(),
        "application/x-npy": buffer.getvalue(),
    }
    answer, said = code.transform(bodies[kind], kind, "application/x-npy")
    session = onnxruntime.InferenceSession(tmp_path / "x/model.onnx")
    assert said == "application/x-npy"
    assert np.allclose(np.load(io.BytesIO(answer)), session.run(None, {"image": sample})[0])
    refusals = [
        code.answer(*asked, None) for asked in ((b"", "image/png"), (b'{"x": 1}', "application/json"))
    ]
    assert refusals == [
        (415, b"the content type 'image/png' is not supported", "text/plain"),
        (400, b"the request has neither 'inputs' nor 'instances'", "text/plain"),
    ]


@pytest.fixture(scope="module")
def traced(folder: Path, bundle: Path) -> Path:
    """The digits as TorchScript."""
    return run_stage(stage("torch.trace"), folder / "traced", inputs={"model": bundle})["model"]


@pytest.mark.parametrize(
    ("script", "form", "members"),
    [
        ("ONE", 0, {"code/inference.py", "code/script.py"}),
        ("FOUR", 1, {"code/inference.py"}),
        ("TRANSFORM", 2, {"code/inference.py"}),
    ],
)
def test_a_users_script_is_taken_as_the_toolkit_takes_it(
    tmp_path: Path, fp32: Path, traced: Path, bundle: Path, script: str, form: int, members: set[str]
) -> None:
    """Its requests have the form that it takes: the smoke test sends them so."""
    (tmp_path / "train.py").write_text(getattr(scripts, script))
    model = fp32 if script == "TRANSFORM" else traced
    inputs = {"model": model, "reference": bundle, "code": tmp_path / "train.py"}
    made = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs)
    packed = {n for n in made.figures["members"] if n.startswith("code/") and "/runtime/" not in n}
    assert packed == {"code/handlers.py", "code/requirements.txt", *members}
    asked = []

    def endpoint(body: bytes) -> bytes:
        asked.append(json.loads(body))
        return handlers.transform(body, "application/json", "application/json")[0]

    unpack(made["package"], tmp_path / "x")
    with own_modules(tmp_path / "x"):
        handlers = Handlers(tmp_path / "x")
        handlers.load()
        assert smoke.smoke_test(endpoint, made["smoke"], atol=None, rtol=None)
    names = [["inputs", "image"], ["inputs"], []][form]
    for name in names:
        asked = [one[name] for one in asked]
    assert isinstance(asked[0], list)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("def model_fn(d): pass\ndef transform_fn(m, b, k, a): pass\ndef input_fn(b, k): pass",
         r"train.py defines transform_fn and input_fn, of which the container takes one \(remove transform_fn, or input_fn\)"),
        ("def input_fn(b, k): pass", "calls model_fn: ValueError: without model_fn a package needs exactly one .pt"),
    ],
)  # fmt: skip
def test_a_script_that_the_toolkit_refuses(tmp_path: Path, fp32: Path, script: str, said: str) -> None:
    (tmp_path / "train.py").write_text(script)
    with pytest.raises(StageError, match=said):
        run_stage(
            stage("package.sagemaker"), tmp_path / "p", inputs={"model": fp32, "code": tmp_path / "train.py"}
        )


def test_wheels_are_what_pip_finds_beside_requirements(tmp_path: Path, fp32: Path) -> None:
    """pip takes the folder from where requirements.txt lies, in whichever folder it is started."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "made_here-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_here.py", "VALUE = 3\n")
        wheel.writestr(
            "made_here-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-here\nVersion: 1.5\n"
        )
        wheel.writestr(
            "made_here-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("made_here-1.5.dist-info/RECORD", "made_here.py,,\n")
    inputs = {"model": fp32, "wheels": wheels}
    with pytest.raises(
        StageError, match=r"wheels has none of onnxruntime [0-9.]+, which requirements.txt asks for"
    ):
        run_stage(stage("package.sagemaker"), tmp_path / "none", inputs=inputs)
    params = {"requirements": ["numpy", "made-here == 1.5"]}
    made = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs, params=params)["package"]
    unpack(made, tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), "-r",
               str(tmp_path / "x/code/requirements.txt")]  # fmt: skip
    text = (tmp_path / "x/code/requirements.txt").read_text()
    assert text == "--no-index\n--find-links wheels\nnumpy\nmade-here == 1.5\n"
    (tmp_path / "x/code/requirements.txt").write_text(text.replace("numpy\n", ""))  # The image has it.
    subprocess.run(command, cwd=tmp_path / "elsewhere", check=True)
    assert (tmp_path / "site/made_here.py").read_text() == "VALUE = 3\n"
