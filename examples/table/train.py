"""Train the example: `python train.py` writes the checkpoint and the held-out rows beside it, in seconds.

Data: the Breast Cancer Wisconsin (Diagnostic) data set as scikit-learn ships it, 569 tumours. Of its 30
columns the ten means are used. 70 % of the rows are for training, 30 % are held out.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from model import COLUMNS, Cells
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_breast_cancer()
    columns = [name.removeprefix("mean ").replace(" ", "_") for name in data.feature_names[:COLUMNS]]
    rows, labels = data.data[:, :COLUMNS].astype(np.float32), data.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        rows, labels, test_size=0.3, random_state=0, stratify=labels
    )
    model = Cells()
    model.mean.copy_(torch.from_numpy(x_train.mean(0)))
    model.std.copy_(torch.from_numpy(x_train.std(0)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    x, y = torch.from_numpy(x_train), torch.from_numpy(y_train)
    for _ in range(60):
        model.train()
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        guessed = model(torch.from_numpy(x_test)).argmax(1).numpy()
    print(f"accuracy on the held-out rows: {(guessed == y_test).mean():.4f}")
    with (HERE / "cells.pt").open("wb") as file:
        torch.save({"model_state_dict": model.state_dict()}, file)
    np.savez_compressed(HERE / "calibration.npz", row=x_train)
    with (HERE / "heldout.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*columns, "label"])
        table.writerows(
            [*(f"{v:.7g}" for v in row), data.target_names[label]]
            for row, label in zip(x_test, y_test, strict=True)
        )


if __name__ == "__main__":
    main()
