"""A repository that push.hub makes of a class of one's own: huggingface_hub's mixin, timm, declared pictures."""

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
from tests.pipeline.hub import Pusher, use
from tests.pipeline.hub_clients import in_python, install_sentence_transformers, small_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pusher(folder: Path) -> Iterator[Pusher]:
    accounts = {"hf_dry_run": Account("local", "write", ("*",))}
    with LocalHub(folder / "hub", accounts=accounts) as running, pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        yield Pusher(running, folder)


def test_sentence_transformers_embeds_as_the_reference(pusher: Pusher, folder: Path) -> None:
    import transformers
    from transformers import BertConfig, BertModel

    source = folder / "sentences-source"
    small_tokenizer(folder / "sentences.json", source)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=32, initializer_range=0.3)  # fmt: skip
    BertModel(config).save_pretrained(source)
    modules = [{"idx": place, "name": str(place), "path": "" if not place else "1_Pooling",
                "type": f"sentence_transformers.models.{name}"} for place, name in enumerate(("Transformer", "Pooling"))]  # fmt: skip
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (source / "1_Pooling/config.json").write_text(json.dumps(pooling))
    versions = {"transformers": transformers.__version__}
    bundle = run_stage(
        stage("model.transformers"), folder / "sentences-b", inputs={"folder": source}, packages=versions
    )["model"]
    onnx = run_stage(stage("onnx.export"), folder / "sentences-o", inputs={"model": bundle})["model"]
    pusher.push(inputs={"folder": source, "models": {"fp32": onnx}, "reference": bundle}, repo="sentences")
    card = Path(
        pusher.api.hf_hub_download("local/sentences", "README.md", local_dir=folder / "sentences-card")
    ).read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in card
    snippet = next(
        text for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "SentenceTransformer" in text
    )
    place = folder / "sentence-transformers"
    install_sentence_transformers(place)
    shown = snippet + "\nimport json; print(json.dumps(embeddings.tolist()))"
    found = json.loads(
        in_python(shown, pusher.hub.url, folder / "sentences-home", before=place).splitlines()[-1]
    )
    import onnxruntime

    given = transformers.AutoTokenizer.from_pretrained(str(source))(["a text"], return_tensors="np")
    given["token_type_ids"] = np.zeros_like(given["input_ids"])
    session = onnxruntime.InferenceSession(onnx / "model.onnx")
    (wanted,) = session.run(None, {port.name: given[port.name] for port in session.get_inputs()})
    np.testing.assert_allclose(found, wanted, atol=1e-5)


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
