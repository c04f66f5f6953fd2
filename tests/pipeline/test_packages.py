"""package.sagemaker on the digits example."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from deploy_runner.errors import StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import HELD, module_of


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

    from deploy_runner.server.archives import unpack

    package = run_stage(stage("package.sagemaker"), tmp_path, inputs={"model": fp32, "reference": bundle})[
        "package"
    ]
    unpack(package, tmp_path / "x")
    code = module_of(tmp_path / "x/code/inference.py")
    with np.load(HELD) as held:
        sample = held["x"][:2]
    buffer = io.BytesIO()
    np.save(buffer, sample)
    csv = "\n".join(",".join(map(str, row)) for row in sample.reshape(2, -1))
    bodies = {
        "application/json": json.dumps(sample.tolist()),
        "text/csv": csv,
        "application/x-npy": buffer.getvalue(),
    }
    model = code.model_fn(str(tmp_path / "x"))
    found = code.predict_fn(code.input_fn(bodies[kind], kind), model)["output"]
    expected = np.load(io.BytesIO(code.output_fn({"output": found}, "application/x-npy")))
    assert found.shape == (2, 10)
    assert np.allclose(found, expected)
    with pytest.raises(ValueError, match="is not supported"):
        code.input_fn(b"", "image/png")
    with pytest.raises(ValueError, match="neither 'inputs' nor 'instances'"):
        code.input_fn('{"x": 1}', "application/json")
