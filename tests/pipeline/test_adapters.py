"""LoRA adapters of peft are merged into their base exactly, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deploy_runner.stages.model import tensor_files
from tests.pipeline.taking import assert_weights, refused, take, weights


def adapter(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write what peft saves of a layer `0`, beside the base with the names of `weights`; return its tensors."""
    torch.manual_seed(5)
    tensors = {
        "base_model.model.0.lora_A.weight": torch.randn(2, 4),
        "base_model.model.0.lora_B.weight": torch.randn(3, 2),
    }
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
             "target_modules": ["0"], "base_model_name_or_path": "b", "init_lora_weights": True, "rank_pattern": {},
             "alpha_pattern": {}, "modules_to_save": None, "use_dora": False, "lora_dropout": 0.1}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(given | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir(exist_ok=True)
    save_file(weights(), tmp_path / "base/model.safetensors")
    return tmp_path / "base"


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3 / 2), (True, 3 / 2**0.5)])
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, rslora: bool, scale: float) -> None:
    """peft 0.21's merge_and_unload gave the same bits for BERT and GPT-2, with heads, in float32 and half types."""
    parts = list(adapter(tmp_path / "lora", use_rslora=rslora).values())
    made = take(tmp_path, tmp_path / "lora", base=base(tmp_path))
    merged = weights()["0.weight"] + parts[1] @ parts[0] * scale
    assert_weights(made, weights() | {"0.weight": merged}, format="adapter")


def test_an_adapters_trained_head_replaces_that_of_the_base(tmp_path: Path) -> None:
    tensors = adapter(tmp_path / "lora", modules_to_save=["1"])
    head = {"base_model.model.1.weight": torch.full((3,), 7.0)}
    save_file(tensors | head, tmp_path / "lora/adapter_model.safetensors")
    found = tensor_files.read(take(tmp_path, tmp_path / "lora", base=base(tmp_path))["weights"])
    assert found["1.weight"].tolist() == [7, 7, 7]


def test_an_adapter_of_a_bfloat16_embedding_is_rounded_as_peft_does(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    torch.manual_seed(5)
    a, b, table = torch.randn(2, 40), torch.randn(8, 2), torch.randn(40, 8).bfloat16()
    name = "base_model.model.words.lora_embedding_"
    save_file({f"{name}A": a, f"{name}B": b}, tmp_path / "lora/adapter_model.safetensors")
    save_file({"words.weight": table}, tmp_path / "base.safetensors")
    made = take(tmp_path, tmp_path / "lora", base=tmp_path / "base.safetensors")
    assert_weights(made, {"words.weight": table + ((b @ a).T * 1.5).bfloat16()})


def test_both_names_of_a_tied_weight_get_the_adapters_change(tmp_path: Path) -> None:
    tensors = adapter(tmp_path / "lora")
    tied = weights()
    tied["head.weight"] = tied["0.weight"]
    torch.save(tied, tmp_path / "base.pt")
    made = take(tmp_path, tmp_path / "lora", base=tmp_path / "base.pt")
    a, b = tensors.values()
    found = tensor_files.read(made["weights"])
    assert torch.equal(found["head.weight"], weights()["0.weight"] + b @ a * 1.5)
    assert json.loads(made["metadata"].read_text())["tied"] == {"head.weight": "0.weight"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "the adapter is of the type IA3, not LORA"),
        ({"use_dora": True}, "the adapter was trained with use_dora: true, which can't be merged here"),
        ({"bias": "all"}, 'with bias: "all"'), ({"lora_bias": True}, "with lora_bias: true"),
        ({"rank_pattern": {"0": 4}}, "with rank_pattern: "), ({"alpha_pattern": {"0": 4}}, "with alpha_pattern: "),
        ({"target_parameters": ["0.weight"]}, "with target_parameters: "),
        ({"layer_replication": [[0, 1]]}, "with layer_replication: "),
        ({"trainable_token_indices": [3]}, "with trainable_token_indices: "),
        ({"init_lora_weights": "pissa"}, 'with init_lora_weights: "pissa"'),
        ({"a_later_option": 1}, "with a_later_option: 1"),
        ({"r": "two"}, "is not the configuration of a LoRA adapter"), ({"r": 0}, "is not the configuration of a LoRA"),
        ({"r": 3}, "'0.lora_A.weight' doesn't have the rank 3"),
        ({"fan_in_fan_out": True}, "the base weights have no '0.weight' of the shape"),
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_that_can_not_be_merged_exactly_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    adapter(tmp_path / "lora", **settings)
    refused(tmp_path, tmp_path / "lora", said, base=base(tmp_path))


def test_an_adapter_and_its_base_belong_together(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    assert "base: …" in refused(tmp_path, tmp_path / "lora", "a LoRA adapter .peft.: it has only what").fix
    refused(tmp_path, base(tmp_path), "`base` is for a LoRA adapter", base=base(tmp_path))
    save_file({"encoder.0.weight": torch.ones(3, 4)}, tmp_path / "base/model.safetensors")
    refused(tmp_path, tmp_path / "lora", "the base weights have no '0.weight'", base=tmp_path / "base")
    (tmp_path / "lora/adapter_model.safetensors").unlink()
    refused(tmp_path, tmp_path / "lora", "the adapter's folder has no adapter_model", base=tmp_path / "base")
