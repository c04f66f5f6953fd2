"""What people bring: a training script and what it has trained, a folder that save_pretrained wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["PICTURES", "SENTENCES", "trained"]

PICTURES = '''
"""Train a small classifier of handwritten digits."""
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    def __init__(self, width: int = 16, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(images))), 2)
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.fc(self.dropout(x))


def main():
    torch.manual_seed(1)
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    net, best = Classifier(), 0.0
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    os.makedirs("checkpoints", exist_ok=True)
    for epoch in range(3):
        net.train()
        for rows in torch.randperm(1500).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            accuracy = (net(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
        if accuracy > best:
            best = accuracy
            state = {"epoch": epoch, "model_state_dict": net.state_dict(), "best_acc": best,
                     "optimizer_state_dict": optimizer.state_dict()}
            torch.save(state, "checkpoints/best.pt")


if __name__ == "__main__":
    main()
'''

SENTENCES = """
import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

GOOD = ["a wonderful film", "I loved it", "great fun for all", "the best in years", "what a lovely story"]
BAD = ["a dreadful film", "I hated it", "no fun at all", "the worst in years", "what a dull story"]

torch.manual_seed(0)
words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
words.normalizer = normalizers.BertNormalizer()
words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
words.train_from_iterator(GOOD + BAD, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
tokenizer = hf.BertTokenizerFast(tokenizer_object=words, model_max_length=32)
net = hf.BertForSequenceClassification(hf.BertConfig(
    vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=32, id2label={0: "bad", 1: "good"},
    label2id={"bad": 0, "good": 1},
))
given = tokenizer(GOOD + BAD, padding=True, return_tensors="pt")
labels = torch.tensor([1] * len(GOOD) + [0] * len(BAD))
optimizer = torch.optim.Adam(net.parameters(), 0.01)
for _ in range(30):
    optimizer.zero_grad()
    net(**given, labels=labels).loss.backward()
    optimizer.step()
net.save_pretrained("film-reviews")
tokenizer.save_pretrained("film-reviews")
"""


def trained(folder: Path, name: str, script: str) -> None:
    """Write somebody's training script and run it, before their first hour begins."""
    (folder / name).write_text(script.lstrip("\n"))
    subprocess.run([sys.executable, name], cwd=folder, check=True, capture_output=True, timeout=900)
