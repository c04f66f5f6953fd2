"""Inputs whose axes may have some sizes only, as compiled models have them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.server.artifact import find
from deploy_runner.server.ports import Port, Ports, Sizes, check
from deploy_runner.server.problems import Invalid, UnfitArtifact
from tests.serve import models
from tests.serve.server import serving

PICTURE = Port(
    "picture", "float32", (-1, 3, -1), ("batch", "", "height"), 0, (Sizes(max=40), Sizes(), Sizes(8, 8, 64))
)


@pytest.mark.parametrize("shape", [(1, 3, 8), (40, 3, 64)])
def test_sizes_within_the_limits_are_taken(shape: tuple[int, ...]) -> None:
    assert check({"picture": np.zeros(shape)}, Ports([PICTURE]), 100) == shape[0]


@pytest.mark.parametrize("shape", [(41, 3, 8), (1, 3, 12), (1, 3, 72), (1, 2, 8), (3, 8)])
def test_other_sizes_are_refused_with_the_limits(shape: tuple[int, ...]) -> None:
    said = (
        "input 'picture' takes float32 of shape [batch (1 to 40), 3, height (multiples of 8, 8 to 64)]; "
        f"the shape {list(shape)} was given"
    )
    with pytest.raises(Invalid, match=f"^{re.escape(said)}$"):
        check({"picture": np.zeros(shape)}, Ports([PICTURE]), 100)


@pytest.mark.parametrize(
    ("sizes", "size", "nearest"),
    [
        (Sizes(), 5, 5),
        (Sizes(min=3), 1, 3),
        (Sizes(8), 9, 16),
        (Sizes(8, 8, 20), 30, 16),
        (Sizes(max=4), 9, 4),
    ],
)
def test_the_nearest_size_is_one_that_is_allowed(sizes: Sizes, size: int, nearest: int) -> None:
    assert sizes.nearest(size) == nearest
    assert sizes.allows(nearest)


def package(path: Path, described: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        place = "archive/data/aotinductor/model/model.wrapper_metadata.json"
        archive.writestr(place, json.dumps({"deploy_runner": json.dumps(described)}))
    return path


def test_a_compiled_model_brings_its_own_description(tmp_path: Path) -> None:
    port = {"name": "x", "dtype": "float32", "shape": [2, 4], "dynamic": {"0": "rows"}, "batch": 0}
    axis = {"label": "rows", "multiple_of": 1, "min": 1, "max": 9}
    said = {"inputs": [port], "outputs": [{**port, "name": "y"}], "axes": [axis]}
    found = find(package(tmp_path / "m.pt2", said), lambda: tmp_path, reference=None, trust=True)
    assert found.format == "aot"
    assert found.inputs[0].sizes == (Sizes(max=9), Sizes())
    del axis["max"]
    with pytest.raises(UnfitArtifact, match="the axes are not described by label, multiple_of, min and max"):
        find(package(tmp_path / "m.pt2", said), lambda: tmp_path, reference=None, trust=True)


def test_a_foreign_package_needs_the_names_of_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(UnfitArtifact, match=r"the input names of m\.pt2 are unknown \(--reference BUNDLE"):
        find(package(tmp_path / "m.pt2", {}), lambda: tmp_path, reference=None, trust=True)


def test_a_model_of_sounds_is_served_without_a_reference(tmp_path: Path) -> None:
    with serving(models.waves(tmp_path / "model"), folder=tmp_path) as server:
        answer = server.predict({"inputs": {"x": [[[0.5] * 800]]}}).json
        assert answer["outputs"]["y"][0] == pytest.approx([0.5])
        assert server.predict({"inputs": {"x": [[[0.5] * 100]]}}).status == 422
