"""What no client of ours sends: weights of accepted types, several outputs in one array, damaged headers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_runner.server import codecs
from deploy_runner.server.ports import Port, Ports, check
from deploy_runner.server.problems import Refused
from tests.serve import models
from tests.serve.packed import loaded_code, write_code
from tests.serve.server import serving

CSV, NPY, NPZ, JSON = "text/csv", "application/x-npy", "application/x-npz", "application/json"
ONE = Ports([Port("x", "float32", (-1, 2))])


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", JSON),
        ("text/html, */*", JSON),
        ("text/csv;q=0.5, application/x-npy", NPY),
        ("application/json;q=0, text/csv;q=0.1", CSV),
        ("application/x-npz ; q=0.9, application/json;q=0.8", NPZ),
    ],
)
def test_the_most_wanted_type_is_answered(accept: str, kind: str) -> None:
    assert codecs.encode({"x": np.ones((1, 2), np.float32)}, accept, ONE)[1] == kind


def test_a_type_that_is_not_wanted_at_all_is_not_answered() -> None:
    with pytest.raises(Refused, match="response type"):
        codecs.encode({"x": np.ones((1, 2), np.float32)}, "application/json;q=0", ONE)


def test_a_csv_may_begin_with_a_byte_order_mark() -> None:
    found = codecs.decode(b"\xef\xbb\xbf1,2\n3,4\n", CSV, ONE, 1000)
    assert found["x"].tolist() == [[1, 2], [3, 4]]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = npy(np.ones((2, 2), np.float32))


@given(st.integers(0, 127), st.binary(min_size=1, max_size=6))
def test_a_damaged_header_is_a_refusal(place: int, damage: bytes) -> None:
    body = WHOLE[:place] + damage + WHOLE[place + len(damage) :]
    try:
        found = codecs.decode(body, NPY, ONE, 1000)
    except Refused:
        return
    assert found["x"].shape[1:] == (2,)


def test_an_unbalanced_bracket_is_a_refusal() -> None:
    with pytest.raises(Refused, match="not an .npy array"):
        codecs.decode(WHOLE.replace(b"(2, 2)", b"((2, 2"), NPY, ONE, 1000)


@pytest.mark.filterwarnings("ignore:overflow encountered in dot:RuntimeWarning")
@pytest.mark.parametrize(
    ("dtype", "values"),
    [("float32", [[1e300, 1.0]]), ("float32", [[-1e39, np.nan]]), ("float16", [[70_000, 1]])],
)
def test_a_number_that_the_type_cannot_hold_is_refused_in_npy_as_in_json(
    dtype: str, values: list[list[float]]
) -> None:
    with pytest.raises(Refused, match="too large for it"):
        codecs.decode(npy(np.array(values)), NPY, Ports([Port("x", dtype, (-1, 2))]), 1000)


def test_an_npy_may_hold_what_is_not_finite() -> None:
    found = codecs.decode(npy(np.array([[np.inf, np.nan]])), NPY, ONE, 1000)
    np.testing.assert_array_equal(found["x"], [[np.inf, np.nan]])


@pytest.mark.parametrize(
    "body",
    [
        b"[[true, 1.0]]",
        b"[[true, false], [1, 0]]",
        b'{"inputs": {"x": [[true, false], [1.0, 0.0]]}}',
        b'{"instances": [{"x": [true, false]}, {"x": [1, 0]}]}',
        b"[[true, false]]",
    ],
)
def test_truth_values_are_no_numbers(body: bytes) -> None:
    with pytest.raises(Refused, match="true or false among them|booleans were given"):
        codecs.decode(body, JSON, ONE, 1000)


def test_an_input_of_truth_values_is_taken_beside_one_of_numbers() -> None:
    both = Ports([Port("mask", "bool", (-1, 2)), Port("x", "float32", (-1, 2))])
    body = b'{"instances": [{"mask": [true, false], "x": [1, 2]}]}'
    found = codecs.decode(body, JSON, both, 1000)
    assert (found["mask"].tolist(), found["x"].tolist()) == ([[True, False]], [[1, 2]])


@pytest.mark.parametrize(
    ("port", "sample"),
    [
        pytest.param(Port("x", "float32", (-1,), batch=0), 5, id="a number"),
        pytest.param(Port("x", "float32", (-1, -1), batch=0), [1, 2, 3], id="any length"),
        pytest.param(Port("x", "float32", (-1, 3, -1, -1), batch=0), np.ones((3, 4, 5)).tolist(), id="a picture of any size"),
        pytest.param(Port("x", "float32", (-1, -1, 2), batch=1), [[1, 2], [3, 4], [5, 6]], id="time first"),
        pytest.param(Port("x", "float32", (1, 3)), [1, 2, 3], id="a batch of one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["inputs", "named", "npy"])
def test_one_sample_needs_no_batch_axis_whatever_its_shape(port: Port, sample: Any, form: str) -> None:
    inputs = {"inputs": {"inputs": sample}, "named": {"inputs": {"x": sample}}}
    body = npy(np.array(sample, np.float32)) if form == "npy" else json.dumps(inputs[form]).encode()
    found = codecs.decode(body, NPY if form == "npy" else JSON, Ports([port]), 10_000)
    assert check(found, Ports([port]), 10) == (0 if port.batch is None else 1)
    assert found["x"].ravel().tolist() == np.array(sample, np.float32).ravel().tolist()


@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_several_outputs_are_never_answered_by_the_first_alone(tmp_path: Path, framework: str) -> None:
    with serving(models.two_outputs(tmp_path / "model"), "--server", framework, folder=tmp_path) as server:
        for accept in (CSV, NPY):
            answer = server.predict({"inputs": [[1, 2]]}, headers={"Accept": accept})
            assert answer.status == 406
            assert answer.problems == [
                f"{accept} holds one array, the model has 2 outputs: use application/json or application/x-npz"
            ]
        both = server.predict({"inputs": [[1, 2]]}, headers={"Accept": f"{CSV}, {NPZ};q=0.1"})
        with np.load(io.BytesIO(both.body)) as arrays:
            assert arrays["sum"].tolist() == [3]
            assert arrays["double"].tolist() == [[2, 4]]


def test_the_package_refuses_it_as_well_and_takes_inputs_alone(tmp_path: Path) -> None:
    model = models.two_outputs(tmp_path / "model")
    ports = [{"name": "x", "dtype": "float32", "shape": [1, 2], "batch": 0}]
    outputs = [{"name": name, "batch": 0} for name in ("sum", "double")]
    described = {"format": "onnx", "file": "model.onnx", "inputs": ports, "outputs": outputs}
    (model / "model.json").write_text(json.dumps(described))
    write_code(model)
    code = loaded_code(model)
    request = b'{"inputs": [[1, 2], [3, 4]]}'
    assert json.loads(code.transform(request, JSON, JSON)[0])["outputs"]["sum"] == [3, 7]
    for kind in (CSV, NPY):
        status, said, _ = code.answer(request, JSON, kind)
        assert (status, said.decode()) == (406, f"{kind} holds one array, the model has 2 outputs: use JSON")
