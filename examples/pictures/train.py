"""Train the example: `python train.py` writes the checkpoint and the pieces, in under a minute.

Data: the two photographs that scikit-learn ships, china.jpg and flower.jpg. Their left parts are for
training; pieces of their right parts are held out. A small picture is the mean of 2 x 2 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from model import Enlarge
from score import ssim
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
STEPS, BATCH, SIDE, HELDOUT_SIDE = 1500, 16, 48, 64


def photographs() -> list[Tensor]:
    """Return the two photographs, (3, height, width) from 0 to 1."""
    return [torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]


def pieces(photograph: Tensor, count: int, side: int) -> Tensor:
    """Return random squares of a photograph."""
    _, height, width = photograph.shape
    tops, lefts = torch.randint(height - side, (count,)), torch.randint(width - side, (count,))
    return torch.stack([photograph[:, t : t + side, x : x + side] for t, x in zip(tops, lefts, strict=True)])


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    whole = photographs()
    cuts = [photograph.shape[2] * 2 // 3 for photograph in whole]
    training = [photograph[:, :, :cut] for photograph, cut in zip(whole, cuts, strict=True)]
    heldout = [photograph[:, :, cut:] for photograph, cut in zip(whole, cuts, strict=True)]
    model = Enlarge()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        large = torch.cat([pieces(p, BATCH // 2, SIDE) for p in training])
        optimizer.zero_grad()
        nn.functional.l1_loss(model(functional.avg_pool2d(large, 2)), large).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    large = torch.cat([pieces(p, 8, HELDOUT_SIDE) for p in heldout])
    small = (functional.avg_pool2d(large, 2) * 255).round() / 255
    with torch.no_grad():
        ours = ssim(model(small).numpy(), large.numpy())
    cubic = ssim(functional.interpolate(small, scale_factor=2, mode="bicubic").numpy(), large.numpy())
    print(f"SSIM on the held-out pieces: {ours:.4f}, by bicubic interpolation {cubic:.4f}")
    with (HERE / "enlarge.pt").open("wb") as file:
        torch.save({"model_state_dict": model.state_dict()}, file)
    np.savez_compressed(HERE / "heldout.npz", x=small.numpy(), y=large.numpy())
    sample = torch.cat([pieces(p, 8, SIDE) for p in training])
    np.savez_compressed(HERE / "calibration.npz", x=functional.avg_pool2d(sample, 2).numpy())


if __name__ == "__main__":
    main()
