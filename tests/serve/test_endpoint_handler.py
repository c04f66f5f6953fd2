"""handler.py of a repository, loaded from a snapshot as the toolkit of Inference Endpoints loads it.

The toolkit (https://github.com/huggingface/huggingface-inference-toolkit, check_and_register_custom_pipeline_
from_directory) is on no package index: the loader below does the same. Its server opens pictures with Pillow and
gives `inputs`; what the handler raises is answered with 400 and its message.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deploy_runner.errors import StageError
from deploy_runner.local.hub import Account, LocalHub
from deploy_runner.server.raw.rawio import RawIo
from tests.pipeline.hub import Pusher, use
from tests.serve import models
from tests.serve.raw_inputs import PICTURES, ROWS, declared, encoded, picture

LOADED = """
import base64, importlib.util, io, json, sys
from pathlib import Path

place = Path(sys.argv[1], "handler.py")
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", place)
sys.path.insert(0, sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)

def of_the_server(asked):
    body = base64.b64decode(asked.get("body", ""))
    if asked["type"].startswith("image/"):
        from PIL import Image
        return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
    return {"inputs": body} if "body" in asked else asked["data"]

answers = []
try:
    handler = module.EndpointHandler(sys.argv[1])
    for asked in json.load(sys.stdin):
        try:
            answers.append(handler(of_the_server(asked)))
        except Exception as error:
            answers.append({"error": str(error)})
except Exception as error:
    answers = {"error": str(error)}
assert not any(name.startswith("deploy_runner") for name in sys.modules)
json.dump(answers, sys.stdout)
"""


@pytest.fixture
def pusher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pusher]:
    with LocalHub(tmp_path / "hub", accounts={"hf_dry_run": Account("local", "write", ("*",))}) as running:
        use(running, monkeypatch)
        yield Pusher(running, tmp_path)


def asked(pusher: Pusher, *requests: dict[str, Any], ignore: list[str] | None = None) -> Any:
    """Return what the handler of the repository answers, downloaded without the files that `ignore` matches."""
    place = pusher.folder / f"snapshot{len(list(pusher.folder.iterdir()))}"
    pusher.api.snapshot_download("local/digits", local_dir=place, ignore_patterns=ignore)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", LOADED, str(place)], input=json.dumps(requests), env=env, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answered(model: Path, io_: Path, samples: list[dict[str, Any]]) -> list[Any]:
    """Return what the model and the declared answers say of samples, without the handler."""
    read = RawIo(io_)
    arrays = read.arrays(samples)
    session = onnxruntime.InferenceSession(model / "model.onnx")
    feeds = {port.name: arrays[port.name] for port in session.get_inputs()}
    outputs = [port.name for port in session.get_outputs()]
    return read.answers(dict(zip(outputs, session.run(outputs, feeds), strict=True)), arrays)


def test_pictures_are_answered_as_the_hubs_task_has_it(pusher: Pusher) -> None:
    model, io_ = models.colours(pusher.folder / "colours"), declared(pusher.folder / "io", **PICTURES)
    pusher.push(inputs={"models": {"int8": model}, "io": io_}, handler="int8")
    image = picture(20, 30)
    body = base64.b64encode(encoded(image, "PNG")).decode()
    opened = {"type": "image/png", "body": body}
    written = {"type": "application/json", "data": {"inputs": body, "parameters": {}}}
    several = {"type": "application/json", "data": {"inputs": [body, body]}}
    broken = {"type": "application/json", "data": {"inputs": base64.b64encode(b"nothing").decode()}}
    found = asked(pusher, opened, written, several, broken)
    (wanted,) = answered(model, io_, [{"image": encoded(image, "PNG")}])
    assert [row["label"] for row in found[0]] == [row["label"] for row in wanted["classes"]]
    assert (
        found[0]
        == found[1]
        == [{"label": r["label"], "score": pytest.approx(r["score"])} for r in wanted["classes"]]
    )
    assert found[2] == [found[0], found[0]]
    assert "picture" in found[3]["error"]
    listed = pusher.api.list_repo_files("local/digits")
    assert {"handler.py", "requirements.txt", "model.json", "code/inference.py", "code/raw/rawio.py"} <= set(
        listed
    )
    requirements = pusher.content("requirements.txt").decode().splitlines()
    assert requirements == [f"onnxruntime=={onnxruntime.__version__}", "pillow"]


@pytest.mark.slow
def test_a_turned_photo_is_upright_also_where_the_toolkit_has_opened_it(pusher: Pusher) -> None:
    model, io_ = models.colours(pusher.folder / "colours"), declared(pusher.folder / "io", **PICTURES)
    pusher.push(inputs={"models": {"fp32": model}, "io": io_}, handler="fp32")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
        data, "PNG", exif=exif
    )
    (found,) = asked(pusher, {"type": "image/png", "body": base64.b64encode(data.getvalue()).decode()})
    (wanted,) = answered(model, io_, [{"image": data.getvalue()}])
    assert found == [
        {"label": row["label"], "score": pytest.approx(row["score"])} for row in wanted["classes"]
    ]


@pytest.mark.slow
def test_rows_and_tensors_are_taken_as_they_are_everywhere(pusher: Pusher) -> None:
    model, io_ = models.scorer(pusher.folder / "scorer"), declared(pusher.folder / "io", **ROWS)
    pusher.push(inputs={"models": {"fp32": model}, "io": io_}, handler="fp32")
    row = {"size": 2.0, "kind": 7, "heavy": True, "other": 3.0}
    tensors = {"ids": [[1, 2], [3, 4]], "weights": [[1.0, 1.0], [0.5, 0.5]]}
    found = asked(pusher, {"type": "application/json", "data": {"inputs": {"row": row}}},
                  {"type": "application/json", "data": {"inputs": tensors}},
                  {"type": "application/json", "data": {"inputs": {"ids": [[1, 2]]}}},
                  {"type": "application/json", "data": {"inputs": [row, row]}})  # fmt: skip
    assert found[0] == answered(model, io_, [{"row": row}])[0]
    assert found[1] == {"outputs": {"score": [3.0, 3.5]}}
    assert found[3] == [found[0], found[0]]
    assert found[2] == {"error": "the input 'weights' is missing, the request has ['ids']"}


@pytest.mark.slow
def test_weights_beside_the_model_come_along_and_an_endpoint_that_left_the_model_out_says_so(
    pusher: Pusher,
) -> None:
    model = models.matmul_with_external_data(pusher.folder / "matmul")
    pusher.push(inputs={"models": {"fp32": model}}, handler="fp32")
    request = {"type": "application/json", "data": {"inputs": [[1, 2, 3, 4]]}}
    assert asked(pusher, request) == [{"outputs": {"y": [[10.0] * 4]}}]
    # What the toolkit leaves out where the framework of the endpoint is not `custom`.
    found = asked(pusher, request, ignore=["*onnx*", "tf*"])
    assert found == {"error": "onnx/model.onnx was not downloaded: set the endpoint's framework to `custom`"}


def test_a_handler_runs_one_of_the_models(pusher: Pusher) -> None:
    model = models.tokens(pusher.folder / "tokens")
    with pytest.raises(
        StageError, match=r"`handler` names the model 'fp23', which is not among `models`.*fp32"
    ):
        pusher.push(inputs={"models": {"fp32": model}}, handler="fp23")
