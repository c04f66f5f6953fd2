"""NumPy's values in a checkpoint are read; its constructors, which take pointers from a file, are not called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core import multiarray

from deploy_runner.errors import StageError
from deploy_runner.stages.checkpoint import harmless, reader
from deploy_runner.testing import run_stage
from tests.bundles import stage


class Call:
    """A call as a pickle makes it, with the state that the result is given then."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


OBJECT = Call(np.dtype, "O", False, True)
FIELDS = (3, "|", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0)
STRUCTURE = Call(np.dtype, "V8", False, True, state=FIELDS)
NUMBER = Call(np.dtype, "i8", False, True)
POINTER = b"\x41" * 8


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(OBJECT, "a NumPy array of Python objects", id="the dtype of objects"),
        pytest.param(Call(np.ndarray, (1,), OBJECT, POINTER), "a NumPy array of Python objects", id="pointers as objects"),
        pytest.param(Call(np.ndarray, (1,), STRUCTURE, POINTER), "a NumPy array of Python objects", id="pointers in a structure"),
        pytest.param(Call(np.dtype, "i8", False, True, state=FIELDS), "a NumPy array of Python objects", id="a number that becomes a structure"),
        pytest.param(Call(np.dtype, "i8", False, True, state=(3, "|", (NUMBER, (9,)), None, None, 8, 1, 0)), "a NumPy array of structures", id="a number that becomes an array"),
        pytest.param(Call(np.ndarray, (9,), NUMBER, POINTER), "a NumPy array over a buffer", id="a view of a buffer"),
        pytest.param(Call(multiarray.scalar, OBJECT, POINTER), "a NumPy array of Python objects", id="a scalar of objects"),
        pytest.param(Call(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), NUMBER, False, [1])), "a NumPy array of Python objects", id="a list for bytes"),
    ],
)  # fmt: skip
def test_what_names_its_own_memory_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "x": value}, tmp_path / "c.pt")
    with pytest.raises(StageError, match=f"{said}, which could run code; nothing was executed"):
        run_stage(stage("checkpoint.state_dict"), tmp_path / "r", inputs={"checkpoint": tmp_path / "c.pt"})


@pytest.mark.parametrize("shape", [(1, 9), (3,), (-1, 7)], ids=str)
def test_bytes_that_are_too_few_or_too_many_are_refused(tmp_path: Path, shape: Any) -> None:
    array = Call(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, shape, NUMBER, False, POINTER))
    torch.save({"model": {"w": torch.ones(1)}, "x": array}, tmp_path / "c.pt")
    with pytest.raises(StageError, match="truncated or damaged"):
        run_stage(stage("checkpoint.state_dict"), tmp_path / "r", inputs={"checkpoint": tmp_path / "c.pt"})


VALUES = [
    np.float64(0.1), np.float32(0.1), np.int64(-3), np.uint8(200), np.bool_(True), np.complex64(1 - 2j),
    np.float16(0.5), np.str_("größer"), np.bytes_(b"ab"), np.datetime64("2026-11-24"),
    np.array("2026-11-24T10:00", "M8[25s]")[()], np.timedelta64(3, "D"),
]  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v))
def test_scalars_come_out_as_they_are(tmp_path: Path, value: Any, legacy: bool) -> None:
    torch.save({"x": value}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    found = reader.read(tmp_path / "c.pt", trust=False)["x"]
    assert found == value
    assert found.dtype == value.dtype


ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4"),
    np.zeros((0, 4)), np.array(["a", "bcd"]), np.array(["2026-11-24"], "M8[D]"), np.array(3.0),
    np.arange(10)[::2], np.ones((2, 1, 3), bool),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_come_out_as_they_are(tmp_path: Path, array: Any) -> None:
    torch.save({"x": array, "epoch": 1}, tmp_path / "c.pt")
    found = reader.read(tmp_path / "c.pt", trust=False)["x"]
    assert isinstance(found, harmless.Array)
    assert np.array_equal(found.values, array)
    assert found.values.dtype == array.dtype
