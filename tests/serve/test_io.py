"""`model.io`: declared once, proved against the training's code, and the same answer from every target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy_runner.sdk import GateError, StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import module_of
from tests.serve.raw_inputs import SEER, encoded, picture, tokenizer
from tests.serve.server import Server, refusal, serving
from tests.serve.toolkit import toolkit

CODE = (
    SEER
    + """
import pathlib
from PIL import Image
from torchvision import transforms as T

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(120, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        shown = attention_mask.unsqueeze(-1).to(torch.float32)
        return self.head((self.table(input_ids) * shown).sum(1) / shown.sum(1).clamp(min=1))

usual = [T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]

def colours(path): return Image.open(path).convert("RGB")
def right(path): return T.Compose([T.Resize(72), T.CenterCrop(64), *usual])(colours(path))
def squashed(path): return T.Compose([T.Resize((64, 64)), *usual])(colours(path))
def bicubic(path): return T.Compose([T.Resize(72, T.InterpolationMode.BICUBIC), T.CenterCrop(64), *usual])(colours(path))
def blue_first(path): return right(path).flip(0)
def halves(path): return T.Compose([T.Resize(72), T.CenterCrop(64), T.ToTensor(), T.Normalize([.5] * 3, [.5] * 3)])(colours(path))
def of_tensors(path):
    pixels = T.functional.resize(T.functional.pil_to_tensor(colours(path)), 72, antialias=False)
    return T.Compose([T.CenterCrop(64), T.ConvertImageDtype(torch.float32), usual[1]])(pixels)
def another_size(path): return right(path)[:, :32]
def fails(path): return {}["key"]

def answer(path):
    net = Seer()
    net.load_state_dict(torch.load("seer.pt"))
    with torch.no_grad():
        return ["cat", "cow", "dog"][net.eval()(right(path)[None]).argmax().item()]
def wrong_answer(path): return "horse"

def words(path):
    import tokenizers
    read = tokenizers.Tokenizer.from_file("tokenizer.json")
    read.enable_truncation(8)
    found = read.encode(pathlib.Path(path).read_text())
    return {"input_ids": torch.tensor([found.ids]), "attention_mask": torch.tensor([found.attention_mask])}
def shade(value):
    if not 0 <= value["shade"] <= 1:
        raise ValueError("a shade is from 0 to 1")
    return torch.full((3, 64, 64), value["shade"])
def best(outputs):
    return {"best": int(outputs["output"].argmax())}
def cut_words(path):
    return {name: array[:, :6] for name, array in words(path).items()}
"""
)
PICTURE = {"resize": 72, "crop": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TEXTS = ("The film was good", "dull", "nothing happens here, a bad film, it was dull")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of a training, with its checkpoints and its raw files."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "training.py").write_text(CODE)
    code = module_of(folder / "training.py")
    torch.manual_seed(0)
    for name, net in (("seer", code.Seer()), ("reader", code.Reader())):
        torch.save(net.state_dict(), folder / f"{name}.pt")
    tokenizer(folder / "tokenizer.json")
    (folder / "labels.txt").write_text("cat\ncow\ndog\n")
    for kind in ("pictures", "texts"):
        (folder / kind).mkdir()
    (folder / "pictures/a.jpg").write_bytes(encoded(picture(200, 150), "JPEG"))
    (folder / "pictures/b.png").write_bytes(encoded(picture(90, 130, "RGBA"), "PNG"))
    for name, text in zip("abc", TEXTS, strict=True):
        (folder / f"texts/{name}.txt").write_text(text)
    return folder


def _bundle(project: Path, name: str, folder: Path, **params: Any) -> Path:
    weights = run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": project / f"{name}.pt"}
    )
    return run_stage(
        stage("model.prepare"), folder / "b", project=project, inputs={"weights": weights["weights"]},
        params={"factory": f"training.py:{name.title()}", **params},
    )["model"]  # fmt: skip


@pytest.fixture(scope="module")
def seer(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures."""
    return _bundle(project, "seer", tmp_path_factory.mktemp("seer"), example={"x": {"shape": [2, 3, 64, 64]}})


@pytest.fixture(scope="module")
def reader(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts."""
    ids = {"shape": [2, 6], "dtype": "int64", "low": 1, "high": 60}
    axes = {"0": "batch", "1": "sequence"}
    return _bundle(
        project, "reader", tmp_path_factory.mktemp("reader"),
        example={"input_ids": ids, "attention_mask": {"shape": [2, 6], "dtype": "int64", "fill": "mask"}},
        dynamic={"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip


def _declared(
    project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], **inputs: Any
) -> Any:
    (folder / "cwd").mkdir()
    monkeypatch.chdir(folder / "cwd")
    given = {"labels": project / "labels.txt", **inputs}
    return run_stage(stage("model.io"), folder, project=project, inputs=given, params=params)


def _of_pictures(
    project: Path, seer: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, golden: str
) -> Any:
    return _declared(
        project, folder, monkeypatch, {"picture": PICTURE, "golden": f"training.py:{golden}"}, model=seer,
        golden=project / "pictures", files={"seer.pt": project / "seer.pt"},
    )  # fmt: skip


@pytest.mark.parametrize("golden", ["right", "answer"])
def test_a_declaration_that_does_what_the_training_did_is_proved(
    project: Path, seer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: str
) -> None:
    done = _of_pictures(project, seer, tmp_path, monkeypatch, golden)
    assert done.figures["golden_files"] == 2
    assert done.figures["golden_max_rel"] == 0
    assert done.figures["golden_answers"] == (2 if golden == "answer" else 0)


@pytest.mark.parametrize(
    ("golden", "said"),
    [
        ("squashed", r"a.jpg: the tensor 'x' differs .* \(crop: your code resizes to the size of the crop\)"),
        ("bicubic", r"\(resize: your code interpolates by bicubic\)"),
        ("blue_first", r"\(channels: your code puts the channels into the order BGR at last\)"),
        ("halves", r"\(scale: your code scales to -1 to 1\)"),
        ("of_tensors", r"\(resize: your code resizes without antialias, which explains most of it\)"),
        ("another_size", r"its shape is \[3, 32, 64\], ours \[1, 3, 64, 64\] \(no single step explains it"),
        ("wrong_answer", r"a.jpg: prediction is '(cat|cow|dog)', the training code's 'horse'"),
    ],
)
def test_a_step_that_the_training_took_otherwise_is_named(
    project: Path, seer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: str, said: str
) -> None:
    with pytest.raises(GateError, match=said):
        _of_pictures(project, seer, tmp_path, monkeypatch, golden)


def test_an_error_of_the_trainings_code_is_one_sentence(
    project: Path, seer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"golden fails on a.jpg: KeyError: 'key' at training.py:\d+"):
        _of_pictures(project, seer, tmp_path, monkeypatch, "fails")


def test_ids_that_were_cut_are_named(
    project: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"text": {"max_length": 6}, "golden": "training.py:cut_words"}
    files = {"tokenizer.json": project / "tokenizer.json"}
    with pytest.raises(
        GateError, match=r"at \[0, 5\] it is \d+, ours 3 \(truncation: your code cuts the ids"
    ):
        _declared(
            project, tmp_path, monkeypatch, params, model=reader, tokenizer=project / "tokenizer.json",
            golden=project / "texts", files=files,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"text": {}}, "texts need a tokenizer"),
        ({"picture": {"mean": [0.5, 0.5]}}, "mean has 2 values, the model 3 channels"),
        ({"picture": {}, "answer": {"labels": ["a", "b"]}}, "has 3 classes, but 2 labels for them"),
        ({"picture": {}, "answer": {"output": "outputs"}}, r"no output 'outputs', only output"),
        ({"picture": {}, "golden": "training.py:right"}, "one is missing"),
        (
            {"preprocessor": "torchvision:ResNet18_Weights.IMAGENET1K_V1"},
            r"prepared to 224x224, but the model",
        ),
        ({"preprocessor": "torchvision:ResNet"}, "torchvision has no weights 'ResNet'"),
        ({"row": {"columns": [{"name": "age"}]}}, r"'x' of shape \[2, 3, 64, 64\] gets 1 column"),
    ],
)
def test_what_cant_be_declared_is_said(
    project: Path, seer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Any, said: str
) -> None:
    with pytest.raises(StageError, match=said):
        _declared(project, tmp_path, monkeypatch, params, model=seer)


@pytest.fixture(scope="module")
def texts(
    project: Path, reader: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path, Path]]:
    """A server of texts behind a container's context, and the io and ONNX that it was made of."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as monkeypatch:
        io = _declared(
            project, folder, monkeypatch, {"text": {"max_length": 8}, "golden": "training.py:words"}, model=reader,
            tokenizer=project / "tokenizer.json", golden=project / "texts",
            files={"tokenizer.json": project / "tokenizer.json"},
        )["io"]  # fmt: skip
    model = run_stage(stage("onnx.export"), folder / "o", inputs={"model": reader})["model"]
    given = {"model": model, "reference": reader, "io": io}
    context = run_stage(stage("package.container"), folder / "c", inputs=given)["context"]
    assert {"tokenizers", "python-multipart"} <= {
        line.partition("==")[0] for line in (context / "requirements.txt").read_text().splitlines()
    }
    with serving(context, "--max-body", "64KiB", folder=folder) as running:
        yield running, io, model


def test_a_text_has_the_same_answer_in_every_form_and_from_every_target(
    project: Path, reader: Path, texts: tuple[Server, Path, Path], tmp_path: Path
) -> None:
    server, io, model = texts
    net = module_of(project / "training.py").Reader()
    net.load_state_dict(torch.load(project / "reader.pt"))
    read = module_of(project / "training.py")
    given = {"model": model, "reference": reader, "io": io}
    package = run_stage(stage("package.sagemaker"), tmp_path, inputs=given)["package"]
    with toolkit(package, tmp_path) as packed:
        for name, text in zip("abc", TEXTS, strict=True):
            answer = server.ask(
                "POST", "/predict", raw=text.encode(), headers={"content-type": "text/plain"}
            ).json
            with torch.no_grad(), pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.chdir(project)
                scores = net.eval()(**read.words(str(project / f"texts/{name}.txt"))).softmax(-1)[0]
            assert answer["prediction"] == ["cat", "cow", "dog"][int(scores.argmax())]
            assert answer["score"] == pytest.approx(float(scores.max()), abs=1e-6)
            for body in ({"text": text}, {"inputs": text}, {"data": text}, text):
                assert server.predict(body).json == answer
            for many in ({"instances": [text]}, {"inputs": [text]}, [text], {"text": [text]}):
                assert server.predict(many).json == {"predictions": [answer]}
            assert packed.ask(text.encode(), "text/plain") == (200, answer)
    batch = server.predict({"instances": list(TEXTS)}).json["predictions"]
    assert [one["prediction"] for one in batch] == [server.predict(text).json["prediction"] for text in TEXTS]


def test_tensors_are_still_taken_and_data_is_answered(texts: tuple[Server, Path, Path]) -> None:
    ids = {"input_ids": [[2, 9, 3]], "attention_mask": [[1, 1, 1]]}
    assert np.array(texts[0].predict({"inputs": ids}).json["outputs"]["output"]).shape == (1, 3)


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"\xff\xfe", "text/plain", 400, "not UTF-8"),
        (b"{", "application/json", 400, "not JSON"),
        (b'{"text": 3}', "application/json", 422, "a sample is a single text"),
        (b'{"text": "a", "text_pair": "b"}', "application/json", 422, "a sample is a single text"),
        (b'["a", 3]', "application/json", 422, "a sample of the batch is none"),
        (b'{"instances": []}', "application/json", 422, "the batch is empty"),
        (b"x", "image/png", 415, r"'image/png' is not supported, use .*text/plain"),
        (b"x", "multipart/form-data", 422, "it names no boundary"),
        (b"x" * 70_000, "text/plain", 413, "larger than 65536 bytes"),
    ],
)
def test_bad_input_is_one_sentence(
    texts: tuple[Server, Path, Path], body: bytes, kind: str, status: int, said: str
) -> None:
    answer = texts[0].ask("POST", "/predict", raw=body, headers={"content-type": kind})
    assert answer.status == status
    assert re.search(said, "; ".join(answer.problems))


def test_a_form_is_a_sample_or_several(texts: tuple[Server, Path, Path]) -> None:
    part = '--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n{}\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    one = texts[0].ask("POST", "/predict", raw=(part.format("dull") + "--b--\r\n").encode(), headers=headers)
    assert one.json == texts[0].predict("dull").json
    two = part.format("dull") + part.format("good") + "--b--\r\n"
    many = texts[0].ask("POST", "/predict", raw=two.encode(), headers=headers)
    assert len(many.json["predictions"]) == 2


def test_raw_input_is_described(texts: tuple[Server, Path, Path]) -> None:
    server = texts[0]
    description = server.ask("GET", "/openapi.json").json
    OpenAPIV31SpecValidator(description).validate()
    post = description["paths"]["/predict"]["post"]
    content = post["requestBody"]["content"]
    assert {"application/json", "text/plain", "multipart/form-data", "application/x-npz"} <= set(content)
    body = Draft202012Validator(content["application/json"]["schema"])
    answer = Draft202012Validator(post["responses"]["200"]["content"]["application/json"]["schema"])
    for good in (
        {"text": "dull"},
        "dull",
        ["dull"],
        {"data": "dull"},
        {"instances": ["dull", {"text": "good"}]},
    ):
        body.validate(good)
        answer.validate(server.predict(good).json)
    wrong: list[Any] = [{"text": 3}, {"texts": "dull"}, [], {"instances": [7]}]
    for bad in wrong:
        assert not body.is_valid(bad)
        assert server.predict(bad).status == 422


def test_answers_are_json_alone(texts: tuple[Server, Path, Path]) -> None:
    headers = {"content-type": "text/plain", "accept": "text/csv"}
    assert texts[0].ask("POST", "/predict", raw=b"dull", headers=headers).status == 406


@pytest.fixture(scope="module")
def sight(seer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of pictures as ONNX."""
    return run_stage(stage("onnx.export"), tmp_path_factory.mktemp("sight"), inputs={"model": seer})["model"]


def test_values_alone_are_answered_with_a_label(
    project: Path, seer: Path, sight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = _declared(project, tmp_path, monkeypatch, {}, model=seer)["io"]
    values = np.random.default_rng(0).standard_normal(3 * 64 * 64).round(3)
    with serving(sight, "--io", str(io), folder=tmp_path) as running:
        answer = running.predict({"data": values.tolist()}).json
        named = running.predict({"inputs": {"x": values.reshape(1, 3, 64, 64).tolist()}}).json
        several = running.predict({"data": [values.tolist()] * 2}).json
    assert answer["prediction"] == ["cat", "cow", "dog"][int(np.argmax(named["outputs"]["output"]))]
    assert several == {"predictions": [answer, answer]}


def test_functions_of_the_users_own_need_trust(
    project: Path, seer: Path, sight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"preprocess": "training.py:shade", "postprocess": "training.py:best"}
    io = _declared(project, tmp_path, monkeypatch, params, model=seer)["io"]
    assert "has code of its own (if you trust it: --trust)" in refusal(sight, "--io", io)
    spec = json.loads((io / "io.json").read_text())
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "io.json").write_text(
        json.dumps({**spec, "python": {"tensors": ["x"], "preprocess": "os.py:system"}})
    )
    assert "has code of its own" in refusal(sight, "--io", hostile)
    assert "os.py is not in the artifact" in refusal(sight, "--io", hostile, "--trust")
    with serving(sight, "--io", str(io), "--trust", folder=tmp_path) as running:
        answer = running.predict({"data": {"shade": 0.5}}).json
        x = np.full((1, 3, 64, 64), 0.5).tolist()
        scores = running.predict({"inputs": {"x": x}}).json["outputs"]["output"]
        assert answer == {"best": int(np.argmax(scores))}
        refused = running.predict({"data": {"shade": 7}})
    assert refused.status == 422
    assert refused.problems == ["preprocess refuses the input: a shade is from 0 to 1"]
