"""Train the example: `python train.py` writes the tokenizer, the checkpoint and samples, in seconds.

The sentences are the messages of Django in eleven languages; collect.py has split them.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from model import LANGUAGES, VOCABULARY, Languages
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

HERE = Path(__file__).parent


def load(split: str) -> tuple[list[str], Tensor]:
    """Return the sentences and the labels of a split."""
    with (HERE / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], torch.tensor([LANGUAGES.index(row["label"]) for row in rows])


def tokenizer_of(texts: list[str]) -> Tokenizer:
    """Return a tokenizer that has learned the frequent pieces of these texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return the ids of the texts' pieces, and which are no padding."""
    pieces = tokenizer.encode_batch(texts)
    return torch.tensor([p.ids for p in pieces]), torch.tensor([p.attention_mask for p in pieces])


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts, labels = load("training")
    heldout, truth = load("heldout")
    tokenizer = tokenizer_of(texts)
    ids, mask = encode(tokenizer, texts)
    model = Languages()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    for _ in range(60):
        model.train()
        for batch in torch.randperm(len(ids)).split(64):
            kept = mask[batch] * (torch.rand_like(mask[batch].float()) > 0.3)  # some pieces only
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids[batch], kept), labels[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        guessed = model(*encode(tokenizer, heldout)).argmax(1)
    print(f"accuracy on the held-out sentences: {(guessed == truth).float().mean():.4f}")
    tokenizer.save(str(HERE / "tokenizer.json"))
    chosen = torch.randperm(len(ids))[:64]
    np.savez_compressed(
        HERE / "samples.npz", input_ids=ids[chosen].numpy(), attention_mask=mask[chosen].numpy()
    )
    with (HERE / "languages.pt").open("wb") as file:
        torch.save({"model_state_dict": model.state_dict()}, file)


if __name__ == "__main__":
    main()
