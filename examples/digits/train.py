"""Train the example: `python examples/digits/train.py` remakes the files beside it.

Data: scikit-learn's digits (1,797 images, 8 x 8). 70 % are for training, 30 % are held out; the
calibration samples are taken from the training split only.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from model import build
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 30
CALIBRATION_SAMPLES = 200


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz whose bytes depend on the arrays alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())


def main() -> None:
    """Train, print the accuracy, write the checkpoint and the samples."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.3, random_state=0, stratify=labels
    )
    train_x, train_y = torch.from_numpy(x_train), torch.from_numpy(y_train)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    best_acc = np.float64(0.0)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        order = torch.randperm(len(train_x))
        total = 0.0
        for batch in order.split(64):
            optimizer.zero_grad()
            loss = criterion(model(train_x[batch]), train_y[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            guessed = model(torch.from_numpy(x_test)).argmax(1).numpy()
        accuracy = (guessed == y_test).mean()
        print(f"epoch {epoch}: loss {total / len(train_x):.4f}, test accuracy {accuracy:.4f}")
        best_acc = max(best_acc, accuracy)
    checkpoint = {
        "epoch": EPOCHS,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": total / len(train_x),
        "best_acc": best_acc,
    }
    # An open file keeps the file's name out of the archive, so that the bytes are reproducible.
    with (HERE / "digits.pt").open("wb") as file:
        torch.save(checkpoint, file)
    save_arrays(HERE / "heldout.npz", x=x_test, y=y_test)
    chosen = np.random.default_rng(0).permutation(len(x_train))[:CALIBRATION_SAMPLES]
    save_arrays(HERE / "calibration.npz", x=x_train[chosen])


if __name__ == "__main__":
    main()
