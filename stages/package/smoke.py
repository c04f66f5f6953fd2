"""Ask what is deployed for the answers that the packed model gave: the smoke test of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy_runner.sdk import GateError, StageError

from ..model.answers import answering
from ..model.axes import rows
from ..model.bundles import Case, read_cases
from ..model.compare import compare, within

Invoke = Callable[[bytes], bytes]
"""Sends a JSON body and returns the JSON answer."""

JSON_TYPE = "application/json"
_ROWS = 8
_SHARE = 1e-4
"""Of its output's largest value: another machine orders sums differently."""
_MOST_BYTES = 4 << 20
"""What the smallest kind of endpoint, a serverless one, takes:
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html"""


def request_body(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays as the JSON that `code/inference.py` takes."""
    return json.dumps({"inputs": {name: array.tolist() for name, array in arrays.items()}}).encode()


def few_rows(case: Case) -> dict[str, Any]:
    """Return the first samples of each input, as many as fit into a request, but one at least.

    Inputs that have no samples, e.g. a mask for all of them, are whole.
    """
    axes = {name: case.batch.get(f"in/{name}") for name in case.inputs}
    few: dict[str, Any] = {}
    for count in (_ROWS, 4, 2, 1):
        few = {name: rows(array, axes[name], slice(count)) for name, array in case.inputs.items()}
        if len(request_body(few)) <= _MOST_BYTES:
            break
    return few


def smoke_test(invoke: Invoke, path: Path, *, atol: float | None, rtol: float | None) -> int:
    """Send the cases of an .npz and compare the answers; return the number of samples.

    Without a tolerance an answer may be off by _SHARE of its output's largest value. Raises GateError
    where an answer is beyond that or isn't one.
    """
    cases = [case for case in read_cases(path) if len(request_body(case.inputs)) <= _MOST_BYTES]
    if not cases:
        raise StageError(f"every case of {path.name} is larger than the {_MOST_BYTES >> 20} MiB of a request")
    try:
        ask = answering(cases, lambda arrays: _answer(invoke, arrays))
        parity = compare(within(cases, _SHARE), ask, atol=atol, rtol=rtol)
    except GateError as error:
        raise GateError(f"the smoke test failed: {error.message}", fix=error.fix) from error
    if parity.excess > 0:
        said = parity.beyond(atol, rtol, "is allowed")
        raise GateError(f"the smoke test failed: the answers differ from the packed model's by {said}; "
                        f"worst at {parity.worst}")  # fmt: skip
    return parity.samples


def _answer(invoke: Invoke, arrays: Mapping[str, Any]) -> dict[str, Any]:
    said = invoke(request_body(arrays))
    try:
        return dict(json.loads(said)["outputs"])
    except (ValueError, KeyError, TypeError):
        shown = said[:200].decode("utf-8", "replace")
        raise GateError(f"the answer is not {{'outputs': {{name: values}}}}: {shown}") from None


def packed_cases(cases: Sequence[Case], run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Case]:
    """Return the cases, a few samples of each, with what the packed model answers to them."""
    few = [(case.name, few_rows(case)) for case in cases]
    return [Case(name, inputs, run(inputs)) for name, inputs in few]
