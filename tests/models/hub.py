"""Small models of transformers with random weights, saved as its users save theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["FOLDERS", "saved"]

hf: Any = transformers

_TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 99,
}  # fmt: skip
_SIGHT = {**_TEXT, "image_size": 32, "patch_size": 8}
del _SIGHT["vocab_size"]
_SOUND = {
    **_TEXT, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_BOTH: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 99,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_HIERARCHY: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}

FOLDERS: dict[str, Callable[[], Any]] = {
    "albert": lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**_TEXT, embedding_size=16)),
    "ast": lambda: hf.ASTForAudioClassification(
        hf.ASTConfig(**_no_size(_SIGHT), max_length=64, num_mel_bins=32, frequency_stride=8, time_stride=8)
    ),
    "bart": lambda: hf.BartForConditionalGeneration(
        hf.BartConfig(**_BOTH, max_position_embeddings=40, forced_eos_token_id=2)
    ),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TEXT)),
    "bert-base": lambda: hf.BertModel(hf.BertConfig(**_TEXT)),
    "bert-fill": lambda: hf.BertForMaskedLM(hf.BertConfig(**_TEXT)),
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**_TEXT, "max_position_embeddings": 32, "eos_token_id": 98, "bos_token_id": 97},
            vision_config=_SIGHT, projection_dim=16,
        )
    ),
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**_HIERARCHY)),
    "deberta": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(**_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "detr": lambda: hf.DetrForObjectDetection(
        hf.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, num_queries=5, d_model=32, encoder_layers=1,
            decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            backbone_config=hf.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
            ),
        )
    ),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**_SIGHT)),
    "distilbert": lambda: hf.DistilBertForTokenClassification(
        hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=99)
    ),
    "electra": lambda: hf.ElectraForPreTraining(hf.ElectraConfig(**_TEXT, embedding_size=16)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64, bos_token_id=98, eos_token_id=98)
    ),
    "hubert": lambda: hf.HubertForCTC(hf.HubertConfig(**_SOUND)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT)),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**_TEXT)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **{name: value for name, value in _TEXT.items() if name != "intermediate_size"}, ffn_dim=64,
            word_embed_proj_dim=32, max_position_embeddings=64,
        )
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_TEXT, num_key_value_heads=2)),
    "roberta": lambda: hf.RobertaForQuestionAnswering(
        hf.RobertaConfig(**_TEXT, max_position_embeddings=66, type_vocab_size=1)
    ),
    "segformer": lambda: hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(**_HIERARCHY, num_attention_heads=[1, 2, 4, 8], decoder_hidden_size=16)
    ),
    "siglip": lambda: hf.SiglipModel(
        hf.SiglipConfig(text_config={**_TEXT, "max_position_embeddings": 16}, vision_config=_SIGHT)
    ),
    "swin": lambda: hf.SwinForImageClassification(
        hf.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99, decoder_start_token_id=0)
    ),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_SIGHT)),
    "wav2vec2": lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**_SOUND)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **_BOTH, num_mel_bins=8, max_source_positions=20, max_target_positions=20, begin_suppress_tokens=None
        )
    ),
    "yolos": lambda: hf.YolosForObjectDetection(
        hf.YolosConfig(**{**_SIGHT, "image_size": [64, 64]}, num_detection_tokens=5)
    ),
}  # fmt: skip
"""Name → the model."""


def _no_size(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "image_size"}


def saved(name: str, folder: Path) -> Any:
    """Save one of FOLDERS, and return it in eval mode."""
    torch.manual_seed(0)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    model = FOLDERS[name]().eval()
    model.save_pretrained(folder)
    return model
