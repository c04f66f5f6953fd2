"""What the worst sample is recognised by: a small picture where an input is one, else its first values."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy_runner.stages.verify import samples

RANDOM = np.random.default_rng(0)


def opened(*arrays: Any) -> Image.Image:
    found = samples.picture({f"x{n}": array for n, array in enumerate(arrays)})
    assert found is not None
    picture = Image.open(io.BytesIO(found))
    picture.load()
    return picture


def test_floats_by_channel_are_stretched_and_bytes_stay_what_they_are() -> None:
    floats = np.linspace(-2, 2, 3 * 5 * 7, dtype=np.float32).reshape(1, 3, 5, 7)
    seen = np.asarray(opened(floats))
    assert seen.shape == (5, 7, 3)
    assert (seen.min(), seen.max()) == (0, 255)
    assert seen[2, 3, 1] == round((float(floats[0, 1, 2, 3]) + 2) / 4 * 255)
    photo = RANDOM.integers(0, 256, (1, 6, 9, 3), dtype=np.uint8)
    assert (np.asarray(opened(np.zeros((1, 12)), photo)) == photo[0]).all()
    assert opened(photo[..., :1]).mode == "L"
    assert (np.asarray(opened(np.concatenate([photo, photo[..., :1]], -1))) == photo[0]).all()


def test_large_pictures_are_made_small_and_odd_values_are_drawn() -> None:
    assert opened(RANDOM.normal(size=(1, 3, 1000, 300)).astype(np.float16)).size == (38, 125)
    odd = np.full((1, 1, 4, 4), np.nan)
    odd[0, 0, 0] = [np.inf, -np.inf, 1.0, 2.0]
    assert np.asarray(opened(odd))[0].tolist() == [0, 0, 128, 255]
    assert np.asarray(opened(np.full((1, 1, 4, 4), 7.0))).max() == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 2, 9)), np.zeros((2, 3, 9, 9)), np.zeros((1, 2, 9, 9)), np.zeros((3, 9, 9)),
        np.zeros((1, 3, 9, 9), np.int64), np.zeros((1, 3, 0, 9)), np.array(1.0),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_told_by_its_first_values(array: Any) -> None:
    assert samples.picture({"x": array}) is None
    assert samples.values({"x": array}).startswith("x: ")


def test_values_are_short_whatever_the_inputs_are() -> None:
    arrays: dict[str, Any] = {
        "row": np.array([[5.1, 3.5]], np.float32),
        "ids": np.arange(20).reshape(1, 20),
        "text": np.array([["a film " * 99]]),
        "fourth": np.zeros(3),
    }
    assert samples.values(arrays) == (
        "row: 5.1, 3.5; ids: 0, 1, 2, 3, 4, 5, 6, 7 and 12 more; text: " + ("a film " * 99)[:80]
    )
