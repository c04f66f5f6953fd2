"""Folders of save_pretrained, as model hubs and trainers leave them, converted without a line of the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as hf

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import Project
from tests.models.hub import FOLDERS, saved

Arrays = dict[str, np.ndarray[Any, Any]]


def prepared(folder: Path, tmp_path: Path, **params: Any) -> StageRun:
    versions = {"transformers": hf.__version__}
    return run_stage(stage("model.transformers"), tmp_path / "bundle", inputs={"folder": folder}, params=params,
                     packages=versions)  # fmt: skip


def exported(folder: Path, tmp_path: Path, **params: Any) -> onnxruntime.InferenceSession:
    bundle = prepared(folder, tmp_path, **params)["model"]
    made = run_stage(stage("onnx.export"), tmp_path / "onnx", inputs={"model": bundle})["model"]
    return onnxruntime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])


def tokens(rows: int, length: int, *, vocabulary: int = 99, seed: int = 0) -> Arrays:
    """Return ids and a mask that is padded on the right."""
    ids = np.random.default_rng(seed).integers(5, vocabulary - 5, (rows, length))
    mask = (np.arange(length) < np.arange(length, length - rows, -1)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def close(session: onnxruntime.InferenceSession, feeds: Arrays, expected: dict[str, torch.Tensor]) -> None:
    names = [value.name for value in session.get_outputs()]
    assert set(names) == set(expected)
    for name, array in zip(names, session.run(names, feeds), strict=True):
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_classifier_of_sentences_is_two_stages_from_its_folder(project: Project) -> None:
    model = saved("bert", project.folder / "folder")
    project.pipeline(
        """
        model: {uses: model.transformers, inputs: {folder: folder}}
        onnx: {uses: onnx.export, inputs: {model: "${{ stages.model.outputs.model }}"}}
        """
    )
    assert set(project.states().values()) == {"ran"}
    assert set(project.states().values()) == {"hit"}
    project.cli("get", "onnx.model", "--to", "taken")
    session = onnxruntime.InferenceSession(project.folder / "taken/model.onnx")
    feeds = {**tokens(3, 31), "token_type_ids": np.zeros((3, 31), np.int64)}
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    close(session, feeds, {"logits": model(**inputs).logits})


@pytest.mark.slow
@torch.no_grad()
def test_a_sentence_is_pooled_as_sentence_transformers_configures_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    model = saved("mpnet", folder)
    names = ("Transformer", "Pooling", "Normalize")
    modules = [{"idx": n, "name": str(n), "path": f"{n}_{name}" if n else "",
                "type": f"sentence_transformers.models.{name}"} for n, name in enumerate(names)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    settings = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    feeds = tokens(4, 11)
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    mean = torch.stack([row[: int(n)].mean(0) for row, n in zip(states, mask.sum((1, 2)), strict=True)])
    close(exported(folder, tmp_path), feeds, {"sentence_embedding": mean / mean.norm(dim=1, keepdim=True)})


@pytest.mark.slow
@torch.no_grad()
def test_encoder_and_decoder_are_a_file_each_that_together_are_the_model(tmp_path: Path) -> None:
    model = saved("t5", tmp_path / "folder")
    feeds = tokens(3, 13)
    words = tokens(3, 5, seed=1)["input_ids"]
    whole = model(
        **{n: torch.from_numpy(a) for n, a in feeds.items()}, decoder_input_ids=torch.from_numpy(words)
    )
    encoder = exported(tmp_path / "folder", tmp_path / "e", part="encoder")
    (states,) = encoder.run(None, feeds)
    decoder = exported(tmp_path / "folder", tmp_path / "d", part="decoder")
    given = {
        "decoder_input_ids": words,
        "encoder_hidden_states": states,
        "attention_mask": feeds["attention_mask"],
    }
    close(decoder, given, {"logits": whole.logits})


@pytest.mark.slow
@torch.no_grad()
def test_the_towers_of_clip_give_the_features_that_are_compared(tmp_path: Path) -> None:
    model = saved("clip", tmp_path / "folder")
    ids = tokens(3, 9)
    ids["input_ids"][:, -1] = 98  # The end, whose state is taken.
    ids["attention_mask"][:] = 1
    picture = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    whole = model(**{n: torch.from_numpy(a) for n, a in ids.items()}, pixel_values=torch.from_numpy(picture))
    found = {}
    for part, feeds in (("text", ids), ("image", {"pixel_values": picture})):
        (features,) = exported(tmp_path / "folder", tmp_path / part, part=part).run(None, feeds)
        found[part] = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(found["text"], whole.text_embeds.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["image"], whole.image_embeds.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "qwen2"])
def test_a_text_is_continued_token_by_token_with_its_past(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path / "folder")
    session = exported(tmp_path / "folder", tmp_path, part="with_past")
    ids = tokens(3, 11)["input_ids"]
    before = hf.DynamicCache()
    model(torch.from_numpy(ids[:, :8]), use_cache=True, cache=before)
    feeds = {
        f"past_key_values_{layer}_{kind}": getattr(kept, f"{kind}s").numpy()
        for layer, kept in enumerate(before.layers)
        for kind in ("key", "value")
    }
    whole = model(torch.from_numpy(ids)).logits.numpy()
    for place in range(8, 11):  # From files' states alone.
        outputs = session.run(None, {"input_ids": ids[:, place : place + 1], **feeds})
        found = dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))
        np.testing.assert_allclose(found["logits"][:, 0], whole[:, place], rtol=1e-3, atol=1e-5)
        feeds = {
            f"past_key_values_{n.removeprefix('present_')}": a for n, a in found.items() if n != "logits"
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_model_of_every_kind_goes_from_its_folder_to_onnx(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "folder")
    # Both exporters write down how Swin pads the example's windows, which is seen at other sizes.
    fixed = ["height", "width"] if name == "swin" else []
    session = exported(tmp_path / "folder", tmp_path, fixed=fixed)
    assert session.get_outputs()


@pytest.mark.slow
def test_pictures_of_other_sizes_are_taken_where_the_model_takes_them(tmp_path: Path) -> None:
    for name, free in (("vit", False), ("convnext", True)):
        saved(name, tmp_path / name)
        made = prepared(tmp_path / name, tmp_path / f"of-{name}")["model"]
        (port,) = json.loads((made / "bundle.json").read_text())["inputs"]
        assert port["dynamic"] == ({"0": "batch", "2": "height", "3": "width"} if free else {"0": "batch"})


def without_head(folder: Path) -> None:
    saved("bert-base", folder)


def quantized(folder: Path) -> None:
    saved("bert", folder)
    change(folder, quantization_config={"quant_method": "gptq"})


def with_code(folder: Path) -> None:
    saved("bert", folder)
    change(folder, model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: ...\n")


def of_tomorrow(folder: Path) -> None:
    saved("bert", folder)
    change(folder, model_type="bert7", architectures=["Bert7Model"])


def nameless(folder: Path) -> None:
    saved("bert", folder)
    change(folder, architectures=None)


def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


def with_dense(folder: Path) -> None:
    saved("mpnet", folder)
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def truncated(folder: Path) -> None:
    saved("bert", folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("make", "params", "said"),
    [
        (without_head, {"task": "text-classification"}, "of BertForSequenceClassification: they were never trained"),
        (quantized, {}, "the model in the folder is quantized, which can't be converted"),
        (with_code, {}, "needs code that is in the folder, which is never executed"),
        (of_tomorrow, {}, "doesn't know the model_type 'bert7'"),
        (nameless, {}, "config.json names no architecture (set `task`)"),
        (adapter, {}, "the folder is an adapter without its model"),
        (Path.mkdir, {}, "the folder has no config.json"),
        (with_dense, {}, "the sentence embedding has Dense, which is not supported"),
        (truncated, {}, "can't load the folder"),
        (without_head, {"part": "text"}, "BertModel has no part 'text'"),
        (without_head, {"fixed": ["sequenc"]}, "fixed: no axis is called 'sequenc'; there are batch, sequence (did you"),
        (without_head, {"part": "with_past"}, "BertModel has no part 'with_past'"),
        (without_head, {"task": "image-classification"}, "can't load the folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_one_sentence(
    make: Callable[[Path], object], params: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    make(folder)
    with pytest.raises(StageError, match=re.escape(said)) as refusal:
        prepared(folder, tmp_path, **params)
    assert "\n" not in str(refusal.value)
    assert not (folder / "ran").exists()
