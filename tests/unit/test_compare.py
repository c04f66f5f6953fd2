"""How two results are compared: every figure on numbers that can be reckoned by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_runner.errors import GateError
from deploy_runner.sdk import Context
from deploy_runner.stages.model.bundles import Case
from deploy_runner.stages.model.compare import (
    Parity,
    both_finite,
    compare,
    eps_limit,
    gate,
    largest,
    within,
)

Array = np.ndarray[Any, Any]
INF, NAN = math.inf, math.nan


def case(expected: Any, name: str = "case 0", **more: Any) -> Case:
    output = np.asarray(expected, more.pop("dtype", np.float64))
    return Case(
        name, {"x": np.arange(3.0 * max(output.shape[:1], default=1)).reshape(-1, 3)}, {"y": output}, **more
    )


def compared(*pairs: tuple[Case, Any], **limits: float) -> Parity:
    """Compare a model that gives these results with the cases."""
    results = iter(np.asarray(actual, of.outputs["y"].dtype) for of, actual in pairs)
    return compare([of for of, _ in pairs], lambda inputs: {"y": next(results)}, **limits)


def test_every_figure_of_a_comparison() -> None:
    found = compared((case([[1, 2], [3, 4]]), [[1.5, 2.5], [3, 3]]), atol=1.0, rtol=0.1)
    assert found.max_abs == 1.0
    assert found.allowed == pytest.approx(1.4)
    assert found.max_rel == 0.25  # 0.5 of 1 is not: 1 is not above atol.
    assert found.cosine == pytest.approx(21 / (math.sqrt(18) * 5))
    assert found.argmax_agreement == 0.5
    assert found.excess == pytest.approx(-0.4)
    assert found.limit == pytest.approx(1.4)
    assert found.worst == "case 0, output 'y', sample 1"
    assert found.samples == 2
    assert {name: array.tolist() for name, array in found.worst_sample.items()} == {
        "in/x": [[3.0, 4.0, 5.0]],
        "expected/y": [[3.0, 4.0]],
        "actual/y": [[3.0, 3.0]],
    }
    assert found.figures() == {
        "max_abs": 1.0,
        "max_rel": 0.25,
        "cosine": found.cosine,
        "argmax_agreement": 0.5,
        "samples": 2,
    }


def test_the_same_result_has_the_best_figures() -> None:
    found = compared((case([[1, -2], [0, 0]]), [[1, -2], [0, 0]]), atol=0.5)
    assert (found.max_abs, found.max_rel, found.argmax_agreement, found.samples) == (0.0, 0.0, 1.0, 2)
    assert found.cosine == pytest.approx(1.0)
    assert (found.excess, found.limit) == (-0.5, 0.5)


def test_the_worst_of_all_cases_counts_and_agreement_is_of_all_samples() -> None:
    one = (case([[1, 2]], "one"), [[1, 2.25]])
    two = (case([[1, 2], [1, 2], [4, 3]], "two"), [[1, 2], [3, 2], [4, 3]])
    three = (case([[8, 2]], "three"), [[8.5, 2]])
    found = compared(one, two, three, atol=0.0)
    assert (found.max_abs, found.excess, found.worst) == (2.0, 2.0, "two, output 'y', sample 1")
    assert found.max_rel == 2.0
    assert (found.argmax_agreement, found.samples) == (0.8, 5)
    assert found.worst_sample["actual/y"].tolist() == [[3.0, 2.0]]
    assert found.cosine == pytest.approx(7 / (math.sqrt(13) * math.sqrt(5)))


def test_of_two_that_are_equally_bad_the_first_is_kept() -> None:
    found = compared((case([[1, 2]], "one"), [[1, 3]]), (case([[1, 2]], "two"), [[1, 3]]), atol=0.0)
    assert found.worst == "one, output 'y', sample 0"


def test_the_worst_is_where_most_is_broken_and_not_where_most_differs() -> None:
    found = compared((case([[100], [1]]), [[110], [2]]), rtol=0.5)
    assert (found.max_abs, found.allowed) == (10.0, 50.0)
    assert (found.excess, found.limit, found.worst) == (0.5, 0.5, "case 0, output 'y', sample 1")


def test_samples_lie_along_their_axis() -> None:
    of = case([[1, 2, 3], [4, 5, 6]], batch={"out/y": 1, "in/x": None})
    found = compared((of, [[1, 2, 3], [4, 5, 9]]), atol=0.0)
    assert (found.samples, found.worst) == (3, "case 0, output 'y', sample 2")
    assert found.worst_sample["expected/y"].tolist() == [[3.0], [6.0]]
    assert found.worst_sample["in/x"].shape == of.inputs["x"].shape


@pytest.mark.parametrize("axis", [None, 2])
def test_what_has_no_axis_of_samples_is_one(axis: int | None) -> None:
    found = compared((case([[1, 2], [3, 4]], batch={"out/y": axis}), [[1, 2], [3, 9]]), atol=0.0)
    assert (found.samples, found.worst) == (1, "case 0, output 'y', sample 0")
    assert found.cosine == pytest.approx(50 / (math.sqrt(30) * math.sqrt(95)))


def test_what_has_one_value_a_sample_agrees_in_its_largest() -> None:
    for expected in ([1, 2, 3], [[1], [2], [3]]):
        found = compared((case(expected), np.asarray(expected) * 2), atol=9.0)
        assert (found.argmax_agreement, found.samples) == (1.0, 3)


def test_agreement_within_a_sample_is_the_share_of_its_rows() -> None:
    found = compared((case([[[1, 2], [1, 2]]]), [[[1, 2], [3, 2]]]), atol=9.0)
    assert (found.argmax_agreement, found.samples) == (0.5, 1)


def test_nothing_is_compared_where_there_is_nothing() -> None:
    found = compared((case(np.zeros((0, 4))), np.zeros((0, 4))), atol=0.0)
    assert found == Parity()
    assert (found.excess, found.argmax_agreement, found.cosine) == (-INF, 1.0, 1.0)


def test_values_beyond_numbers_equal_themselves_and_are_left_out_of_the_figures() -> None:
    found = compared((case([[INF, -INF, NAN, 2, 1]]), [[INF, -INF, NAN, 2.5, 1]]), atol=1.0)
    assert (found.max_abs, found.max_rel, found.excess) == (0.5, 0.25, -0.5)
    assert found.argmax_agreement == 1.0
    assert compared((case([[-INF, -3]]), [[-INF, -2]]), atol=1.0).argmax_agreement == 1.0


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        ([[1, 2]], [[1, NAN]], "[0, 1]: the result is nan where the original is 2"),
        ([[NAN, 2]], [[1, 2]], "[0, 0]: the result is 1 where the original is nan"),
        ([[1], [INF]], [[1], [-INF]], "[1, 0]: the result is -inf where the original is inf"),
        ([[1], [INF]], [[1], [2.5]], "[1, 0]: the result is 2.5 where the original is inf"),
        ([[INF], [1]], [[NAN], [1]], "[0, 0]: the result is nan where the original is inf"),
        ([[1], [1]], [[1], [-INF]], "[1, 0]: the result is -inf where the original is 1"),
    ],
)
def test_a_value_beyond_numbers_where_the_other_is_none_is_refused(
    expected: Any, actual: Any, said: str
) -> None:
    with pytest.raises(GateError, match=rf"\Acase 0, output 'y' at {re.escape(said)}\Z"):
        compared((case(expected), actual), atol=9.0)


def test_a_single_number_has_no_place() -> None:
    with pytest.raises(GateError, match=r"\Ay at \[\]: the result is nan where the original is 1\Z"):
        both_finite("y", np.asarray(1.0), np.asarray(NAN))
    assert both_finite("y", np.asarray([1.0, INF]), np.asarray([2.0, INF])).tolist() == [True, False]


def test_complex_numbers_are_compared_by_their_parts() -> None:
    found = compared((case([[1 + 2j, 4j]], dtype=np.complex128), [[1 + 2.5j, 4j]]), atol=1.0)
    assert (found.max_abs, found.max_rel, found.samples) == (0.5, 0.25, 1)
    assert largest(np.asarray([3 - 7j, 5j])) == 7.0


@pytest.mark.parametrize(
    ("limits", "excess"),
    [
        ({"atol": 0.25}, 0.75),
        ({"rtol": 0.25}, 0.5),
        ({"atol": 0.25, "rtol": 0.25}, 0.25),
        ({"atol": 0.0}, 1.0),
        ({}, 0.875),
    ],
)
def test_without_limits_what_the_case_allows_counts(limits: Mapping[str, float], excess: float) -> None:
    assert compared((case([[2.0]], allowed={"y": 0.125}), [[3.0]]), **limits).excess == excess


def test_without_any_limit_it_is_the_types_rounding_and_small_values_have_no_relative_difference() -> None:
    of = case([[4.0, 1e-6]], dtype=np.float32)
    found = compared((of, [[4.0, 2e-6]]))
    limit = 64 * 2.0**-23 * 4
    assert found.limit == found.allowed == limit
    assert found.excess == pytest.approx(1e-6 - limit, abs=1e-9)
    assert found.max_rel == 0.0


def test_relative_differences_of_almost_nothing_are_finite() -> None:
    found = compared((case([[0.0, 1e-320]]), [[0.0, 1e-320]]), rtol=0.1)
    assert found.max_rel == 0.0


def test_an_output_that_is_missing_or_has_another_shape_is_refused() -> None:
    with pytest.raises(GateError, match=r"\Athe model has no output 'y', only a, b\Z"):
        compare([case([[1]])], lambda inputs: {"a": np.zeros(1), "b": np.zeros(1)})
    said = r"\Acase 0: output 'y' has the shape \(1, 2\), the reference has \(2, 1\)\Z"
    with pytest.raises(GateError, match=said):
        compared((case([[1], [2]]), [[1, 2]]))


def test_a_model_is_given_the_cases_inputs() -> None:
    of = case([[0, 1, 2], [3, 4, 5]])
    assert compare([of], lambda inputs: {"y": inputs["x"]}, atol=0.0).max_abs == 0.0


@pytest.mark.parametrize(
    ("array", "limit"),
    [
        (np.asarray([1, -4], np.float32), 64 * 2.0**-23 * 4),
        (np.asarray([1, -4], np.float16), 64 * 2.0**-10 * 4),
        (np.asarray([1, INF, NAN]), 64 * 2.0**-52),
        (np.asarray([3 + 4j], np.complex64), 64 * 2.0**-23 * 4),
        (np.asarray([7, 9]), 0.0),
        (np.zeros((0, 2)), 0.0),
    ],
)
def test_rounding_is_of_the_type_and_of_the_largest_value(array: Array, limit: float) -> None:
    assert eps_limit(array) == limit


def test_another_unit_of_rounding_may_be_given() -> None:
    assert eps_limit(np.asarray([2.0]), eps=0.5) == 64.0


@pytest.mark.parametrize(
    ("values", "most"), [([1, -3, 2], 3.0), ([INF, -2, NAN], 2.0), ([NAN], 0.0), ([], 0.0), ([-5], 5.0)]
)
def test_the_largest_is_of_the_finite_values(values: list[float], most: float) -> None:
    assert largest(np.asarray(values, np.float64)) == most


def test_within_a_share_of_the_largest_value_of_all_cases() -> None:
    found = within([case([1, -8]), case([2, 4], "case 1")], 0.25)
    assert [(of.name, of.allowed) for of in found] == [("case 0", {"y": 2.0}), ("case 1", {"y": 2.0})]
    assert within([case([0.5, 0.25])], 0.5)[0].allowed == {"y": 0.25}


@pytest.mark.parametrize(
    ("atol", "rtol", "said"),
    [
        (None, None, "up to 0.75, more than the 0.25 that is explained by its type's rounding"),
        (0.25, None, "up to 0.75, more than atol 0.25 + rtol 0 allow"),
        (None, 0.125, "up to 0.75, more than atol 0 + rtol 0.125 allow"),
        (0.25, 0.125, "up to 0.75, more than atol 0.25 + rtol 0.125 allow"),
    ],
)
def test_what_is_broken_is_said_with_what_was_allowed(
    atol: float | None, rtol: float | None, said: str
) -> None:
    parity = Parity(excess=0.5, limit=0.25)
    assert parity.beyond(atol, rtol) == said


def test_what_else_allows_so_much_may_be_said() -> None:
    assert (
        Parity(excess=1, limit=2).beyond(None, None, "is known") == "up to 3, more than the 2 that is known"
    )


def test_a_gate_records_the_figures_and_refuses_what_is_beyond(tmp_path: Path) -> None:
    ctx = Context("verify.parity", tmp_path)
    fine = Parity(max_abs=0.5, allowed=1.0, excess=0.0, samples=3)
    gate(ctx, fine, fix="nothing")
    assert ctx.figures == {**fine.figures(), "allowed": 1.0}
    broken = Parity(max_abs=2.0, allowed=1.5, excess=0.5, limit=1.5, worst="there")
    said = (
        "the result differs from the original by up to 2, more than atol 1.5 + rtol 0 allow; worst at there"
    )
    with pytest.raises(GateError, match=rf"\A{re.escape(said)} \(do it\)\Z"):
        gate(ctx, broken, atol=1.5, fix="do it")
    assert ctx.figures == {**broken.figures(), "allowed": 1.5}
    with pytest.raises(
        GateError,
        match=r"that is explained by its type's rounding; worst at there \(if .*`atol` and `rtol`\)\Z",
    ):
        gate(ctx, broken)
    with pytest.raises(
        GateError, match=r"more than atol 0 \+ rtol 0.5 allow; worst at there \(if .*`atol` and `rtol`\)\Z"
    ):
        gate(ctx, broken, rtol=0.5)


NUMBERS = st.floats(-1e6, 1e6)
ROWS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(ROWS, st.data())
def test_figures_are_those_of_their_definitions(expected: list[list[float]], data: st.DataObject) -> None:
    shape = np.shape(expected)
    actual = np.asarray([[data.draw(NUMBERS) for _ in row] for row in expected])
    reference = np.asarray(expected)
    found = compared((case(expected), actual), atol=1.0, rtol=0.5)
    difference = np.abs(actual - reference)
    assert found.max_abs == difference.max()
    assert found.excess == (difference - (1.0 + 0.5 * np.abs(reference))).max()
    assert found.samples == shape[0]
    agreed = [a.argmax() == b.argmax() for a, b in zip(actual, reference, strict=True)]
    assert found.argmax_agreement == np.mean(agreed)
