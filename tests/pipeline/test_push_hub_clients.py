"""A repository that push.hub makes, loaded by the clients that people have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.local.hub import Account, LocalHub
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import ROOT
from tests.models.hub import saved
from tests.pipeline.hub import Pusher, use
from tests.pipeline.hub_clients import Javascript, in_python, install_javascript, install_optimum

pytestmark = pytest.mark.slow

SENTENCES = ["A small model of sentences.", "naïve café 😀, twice", "HELLO World", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[LocalHub]:
    accounts = {"hf_dry_run": Account("local", "write", ("*",))}
    with LocalHub(folder / "hub", accounts=accounts) as running, pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        yield running


@pytest.fixture(scope="module")
def pusher(hub: LocalHub, folder: Path) -> Pusher:
    return Pusher(hub, folder)


@pytest.fixture(scope="module")
def javascript(hub: LocalHub, folder: Path) -> Javascript:
    place = folder / "javascript"
    place.mkdir()
    install_javascript(place)
    return Javascript(place, hub.url)


@pytest.fixture(scope="module")
def optimum(folder: Path) -> Path:
    place = folder / "optimum"
    install_optimum(place)
    return place


def converted(folder: Path, source: Path) -> dict[str, Path]:
    """Convert a folder of save_pretrained to ONNX, of which the first has its weights beside it."""
    import onnx
    import transformers

    versions = {"transformers": transformers.__version__}
    bundle = run_stage(
        stage("model.transformers"), folder / "b", inputs={"folder": source}, packages=versions
    )["model"]
    whole = run_stage(stage("onnx.export"), folder / "fp32", inputs={"model": bundle})["model"] / "model.onnx"
    beside = folder / "beside"
    beside.mkdir()
    onnx.save(onnx.load(whole), beside / "model.onnx", save_as_external_data=True, location="model.onnx.data",
              size_threshold=1024)  # fmt: skip
    given = {"model": whole.parent, "reference": bundle}
    half = run_stage(stage("onnx.float16"), folder / "fp16", inputs=given, params={"atol": 0.1})["model"]
    q8 = run_stage(stage("onnx.quantize_dynamic"), folder / "q8", inputs=given)["model"]
    return {"reference": bundle, "fp32": beside, "fp16": half, "q8": q8, "whole": whole}


def models(made: dict[str, Path]) -> dict[str, Path]:
    return {
        "fp32": made["fp32"],
        "fp16": made["fp16"],
        "q8": made["q8"],
        "int8": made["q8"],
        "uint8": made["q8"],
        "q4": made["whole"],
    }


@pytest.fixture(scope="module")
def texts(pusher: Pusher, folder: Path) -> Any:
    """A classifier of sentences with its tokenizer, in the repository local/texts; the model itself."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    source = folder / "texts-source"
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator((ROOT / "README.md").read_text().splitlines(),
                                  trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", mask_token="[MASK]", model_max_length=64).save_pretrained(source)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                        id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2},
                        initializer_range=0.2)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(source)
    made = converted(folder / "texts", source)
    pusher.push(
        inputs={"folder": source, "models": models(made), "reference": made["reference"]}, repo="texts",
        examples=SENTENCES[:2],
    )  # fmt: skip
    return source


@pytest.fixture(scope="module")
def pictures(pusher: Pusher, folder: Path) -> Any:
    """A classifier of pictures with its preprocessor, in the repository local/pictures."""
    from transformers import ViTImageProcessor

    source = folder / "pictures-source"
    saved("vit", source)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(source)
    made = converted(folder / "pictures", source)
    pusher.push(
        inputs={"folder": source, "models": models(made), "reference": made["reference"]}, repo="pictures"
    )
    return source


def expected(task: str, source: Path, inputs: Any) -> list[dict[str, float]]:
    """Return label → score of transformers' own pipeline."""
    from transformers import pipeline

    loaded: Any = pipeline(task, model=str(source), device="cpu")
    answers = loaded(inputs, top_k=None) if task.startswith("text") else loaded(inputs, top_k=5)
    return [{row["label"]: row["score"] for row in answer} for answer in answers]


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def close(found: Any, wanted: list[dict[str, float]], within: float) -> None:
    for one, two in zip(found, wanted, strict=True):
        scores = {row["label"]: row["score"] for row in one}
        assert set(scores) == set(two)
        assert max(abs(scores[label] - two[label]) for label in two) <= within


@pytest.mark.parametrize(
    ("dtype", "within"),
    [("fp32", 1e-5), ("fp16", 1e-2), ("q8", 0.1), ("int8", 0.1), ("uint8", 0.1), ("q4", 1e-5)],
)
def test_transformers_js_answers_as_the_original(
    javascript: Javascript, texts: Path, pictures: Path, folder: Path, dtype: str, within: float
) -> None:
    wanted = expected("text-classification", texts, SENTENCES)
    found = javascript.pipeline("text-classification", "local/texts", SENTENCES, dtype=dtype)
    best = [{"label": row["label"], "score": row["score"]} for row in found]
    assert [row["label"] for row in best] == [
        max(one, key=lambda label: one[label]) for one in wanted
    ] or within >= 0.1
    assert max(abs(row["score"] - one[row["label"]]) for row, one in zip(best, wanted, strict=True)) <= within
    image = str(picture(folder))
    found = javascript.pipeline("image-classification", "local/pictures", [image], dtype=dtype)
    close(found, expected("image-classification", pictures, [image]), within)


def test_transformers_loads_what_was_pushed(
    pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    code = f"""
import json
from transformers import pipeline
inputs = {{"text-classification": ("local/texts", {SENTENCES!r}, dict(top_k=None)),
          "image-classification": ("local/pictures", [{str(picture(folder))!r}], dict(top_k=5))}}
print(json.dumps({{t: pipeline(t, model=repo, device="cpu")(given, **more) for t, (repo, given, more) in inputs.items()}}))
"""
    found = json.loads(in_python(code, pusher.hub.url, folder / "home").splitlines()[-1])
    close(found["text-classification"], expected("text-classification", texts, SENTENCES), 1e-6)
    close(
        found["image-classification"],
        expected("image-classification", pictures, [str(picture(folder))]),
        1e-6,
    )


def test_optimum_runs_each_precision(
    optimum: Path, pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    code = f"""
import json
import numpy as np
from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

def shown(model, logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    scores = exp / exp.sum(-1, keepdims=True)
    return [[dict(label=model.config.id2label[i], score=float(s)) for i, s in enumerate(row)] for row in scores]

answers = {{}}
tokenizer = AutoTokenizer.from_pretrained("local/texts")
given = tokenizer({SENTENCES!r}, padding=True, return_tensors="np")
for name in ("model.onnx", "model_quantized.onnx"):
    model = ORTModelForSequenceClassification.from_pretrained("local/texts", subfolder="onnx", file_name=name)
    answers[name] = shown(model, np.asarray(model(**given).logits))
model = ORTModelForSequenceClassification.from_pretrained("local/texts")
answers["default"] = shown(model, np.asarray(model(**given).logits))
model = ORTModelForImageClassification.from_pretrained("local/pictures")
given = AutoImageProcessor.from_pretrained("local/pictures", use_fast=False)(Image.open({str(picture(folder))!r}), return_tensors="np")
answers["picture"] = shown(model, np.asarray(model(**given).logits))
print(json.dumps(answers))
"""
    found = json.loads(
        in_python(code, pusher.hub.url, folder / "optimum-home", before=optimum).splitlines()[-1]
    )
    wanted = expected("text-classification", texts, SENTENCES)
    close(found["model.onnx"], wanted, 1e-5)
    close(found["default"], wanted, 1e-5)
    close(found["model_quantized.onnx"], wanted, 0.1)
    close(found["picture"], expected("image-classification", pictures, [str(picture(folder))]), 1e-4)


def counted(requests: list[str], repo: str) -> bool:
    """Say whether the Hub would count these requests as a download."""
    return any(
        re.fullmatch(rf"(GET|HEAD) /local/{repo}/resolve/[^/]+/config\.json", request) for request in requests
    )


def test_the_snippets_of_the_card_run(
    javascript: Javascript, pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    for repo in ("texts", "pictures"):
        path = pusher.api.hf_hub_download(f"local/{repo}", "README.md", local_dir=folder / f"card-{repo}")
        card = Path(path).read_text()
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(snippets) == 2
        for place, snippet in enumerate(snippets):
            before = len(pusher.hub.requests)
            in_python(snippet, pusher.hub.url, folder / f"home-{repo}-{place}")
            assert counted(pusher.hub.requests[before:], repo)
        (script,) = re.findall(r"```js\n(.*?)```", card, re.DOTALL)
        picture(folder).rename(javascript.folder / "picture.jpg")
        before = len(pusher.hub.requests)
        found = json.loads(javascript.run(script + "\nconsole.log(JSON.stringify(answer));").splitlines()[-1])
        assert counted(pusher.hub.requests[before:], repo)
        assert found[0]["label"]


NET = """
from torch import nn
from huggingface_hub import PyTorchModelHubMixin

class Net(nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 8, names: tuple = ("a", "b"), *, bias: bool = True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width, bias=bias), nn.ReLU(), nn.Linear(width, len(names)))

    def forward(self, x):
        return self.body(x)
"""


def test_a_class_with_the_hubs_mixin_loads_its_weights(pusher: Pusher, folder: Path) -> None:
    project = folder / "mixin"
    project.mkdir()
    (project / "net.py").write_text(NET)
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(4, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    torch.save(
        {f"module.body.{name}": tensor for name, tensor in body.state_dict().items()}, project / "net.pt"
    )
    weights = run_stage(
        stage("checkpoint.state_dict"), project / "w", inputs={"checkpoint": project / "net.pt"}
    )["weights"]
    bundle = run_stage(
        stage("model.prepare"), project / "b", inputs={"weights": weights}, project=project,
        params={"factory": "net.py:Net", "kwargs": {"width": 16, "bias": False, "names": ["x", "y", "z"]},
                "example": {"shape": [2, 4]}},
    )["model"]  # fmt: skip
    pusher.push(inputs={"weights": weights, "reference": bundle}, repo="mixin", tag="v1")
    code = f"""
import json, sys
sys.path.insert(0, {str(project)!r})
import torch
from net import Net
print(json.dumps(Net.from_pretrained("local/mixin", revision="v1", strict=True)(torch.arange(8.0).reshape(2, 4)).tolist()))
"""
    found = json.loads(in_python(code, pusher.hub.url, folder / "mixin-home").splitlines()[-1])
    np.testing.assert_allclose(found, body(torch.arange(8.0).reshape(2, 4)).detach().numpy(), rtol=1e-6)


def test_timm_loads_its_own_config(pusher: Pusher, folder: Path) -> None:
    import timm

    place = folder / "timm"
    model = timm.create_model("test_resnet", num_classes=3).eval()
    timm.models.save_for_hf(
        model, str(place), model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True
    )
    pusher.push(inputs={"weights": place / "model.safetensors", "files": {"config.json": place / "config.json"}}, repo="timm",
                pipeline_tag="image-classification", tag="v1")  # fmt: skip
    card = Path(
        pusher.api.hf_hub_download("local/timm", "README.md", local_dir=folder / "timm-card")
    ).read_text()
    assert "library_name: timm\n" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shown = "import json, torch; print(json.dumps(model(torch.ones(1, 3, 64, 64)).tolist()))"
    before = len(pusher.hub.requests)
    found = json.loads(in_python(snippet + shown, pusher.hub.url, folder / "timm-home").splitlines()[-1])
    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.ones(1, 3, 64, 64)).numpy(), rtol=1e-4, atol=1e-6)
    assert (
        "HEAD /local/timm/resolve/v1/model.safetensors" in pusher.hub.requests[before:]
    )  # What is counted of timm.


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"resize": 40, "crop": [32, 32], "interpolation": "bicubic"}, id="shortest-crop"),
        pytest.param({"resize": [32, 24], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3}, id="size"),
        pytest.param({"scale": False, "crop": [40, 40]}, id="crop-alone"),
    ],
)  # fmt: skip
def test_a_declared_picture_is_read_by_the_hubs_own_processor_as_by_ours(
    pusher: Pusher, folder: Path, given: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    from PIL import Image

    from deploy_runner.server.raw.rawio import RawIo

    name = request.node.callspec.id
    place = folder / name
    place.mkdir()
    torch.save(torch.nn.Linear(3, 3).state_dict(), place / "net.pt")
    (place / "net.py").write_text(PICTURE_NET)
    weights = run_stage(stage("checkpoint.state_dict"), place / "w", inputs={"checkpoint": place / "net.pt"})[
        "weights"
    ]
    bundle = run_stage(
        stage("model.prepare"), place / "b", inputs={"weights": weights}, project=place,
        params={"factory": "net.py:Net", "example": {"shape": [2, 3, 32, 32]},
                "dynamic": {"x": {"0": "batch", "2": "height", "3": "width"}}},
    )["model"]  # fmt: skip
    io = run_stage(stage("model.io"), place / "i", inputs={"model": bundle},
                   params={"picture": given, "answer": {"labels": ["a", "b", "c"]}})["io"]  # fmt: skip
    pusher.push(inputs={"weights": weights, "reference": bundle, "io": io}, repo=name)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(
        place / "p.png"
    )
    code = f"""
import json
from PIL import Image
from transformers import AutoImageProcessor
read = AutoImageProcessor.from_pretrained("local/{name}", backend="pil")
print(json.dumps(read(Image.open({str(place / "p.png")!r}), return_tensors="np")["pixel_values"].tolist()))
"""
    found = json.loads(in_python(code, pusher.hub.url, folder / f"home-{name}").splitlines()[-1])
    (wanted,) = RawIo(io).arrays([{"image": (place / "p.png").read_bytes()}]).values()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


PICTURE_NET = """
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        return super().forward(x.mean((2, 3)))
"""
