"""Ask what is deployed for the answers that the packed model gave: the smoke test of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

from deploy_runner.sdk import GateError, StageError

from ..model.answers import answering
from ..model.axes import rows
from ..model.bundles import Case, case_arrays, cases_of
from ..model.compare import compare, within
from ..model.npz import read_arrays, write_arrays

Invoke = Callable[[bytes], bytes]
"""Sends a JSON body and returns the JSON answer."""

JSON_TYPE = "application/json"
_FORM = "form"
_ROWS = 8
_SHARE = 1e-4
"""Of its output's largest value: another machine orders sums differently."""
_MOST_BYTES = 4 << 20
"""What the smallest kind of endpoint, a serverless one, takes:
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html"""


class Form(IntEnum):
    """How a JSON request holds the inputs: what a script of the user's takes is the user's choice."""

    NAMED = 0
    """{"inputs": {NAME: values}}"""
    INPUTS = 1
    """{"inputs": values}"""
    BARE = 2
    """values"""


def forms(arrays: Mapping[str, Any]) -> list[Form]:
    """Return the forms that can hold these inputs: a single one needs no name."""
    return list(Form) if len(arrays) == 1 else [Form.NAMED]


def request_body(arrays: Mapping[str, Any], form: Form = Form.NAMED) -> bytes:
    """Return arrays as JSON."""
    listed = {name: array.tolist() for name, array in arrays.items()}
    (alone,) = listed.values() if form else (listed,)
    return json.dumps(alone if form is Form.BARE else {"inputs": alone}).encode()


def outputs_of(answer: bytes, names: Sequence[str]) -> dict[str, Any]:
    """Return what a JSON answer has for these outputs: by name, or alone, or in their order.

    Raises GateError where it has something else.
    """
    with suppress(ValueError):
        found = json.loads(answer)
        if isinstance(found, dict):
            found = next((found[key] for key in ("outputs", "predictions") if key in found), found)
        if isinstance(found, dict) and set(names) <= set(found):
            return found
        if isinstance(found, list):
            listed = [found] if len(names) == 1 else found
            return dict(zip(names, listed, strict=True))
    shown = answer[:200].decode("utf-8", "replace")
    raise GateError(f"the answer is not {{'outputs': {{name: values}}}} with {', '.join(names)}: {shown}")


def write(path: Path, cases: Sequence[Case], form: Form) -> None:
    """Write the cases, and the form of their requests unless it is the usual one."""
    import numpy as np

    arrays = case_arrays(cases)
    write_arrays(path, {_FORM: np.array(form), **arrays} if form else arrays)


def _read(path: Path) -> tuple[list[Case], Form]:
    arrays = read_arrays(path)
    form = Form(int(arrays.pop(_FORM, 0)))
    return cases_of(arrays), form


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
    cases, form = _read(path)
    cases = [case for case in cases if len(request_body(case.inputs)) <= _MOST_BYTES]
    if not cases:
        raise StageError(f"every case of {path.name} is larger than the {_MOST_BYTES >> 20} MiB of a request")
    try:
        names = list(cases[0].outputs)
        ask = answering(cases, lambda arrays: outputs_of(invoke(request_body(arrays, form)), names))
        parity = compare(within(cases, _SHARE), ask, atol=atol, rtol=rtol)
    except GateError as error:
        raise GateError(f"the smoke test failed: {error.message}", fix=error.fix) from error
    if parity.excess > 0:
        said = parity.beyond(atol, rtol, "is allowed")
        raise GateError(f"the smoke test failed: the answers differ from the packed model's by {said}; "
                        f"worst at {parity.worst}")  # fmt: skip
    return parity.samples


def packed_cases(cases: Sequence[Case], run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Case]:
    """Return the cases, a few samples of each, with what the packed model answers to them."""
    few = [(case.name, few_rows(case)) for case in cases]
    return [Case(name, inputs, run(inputs)) for name, inputs in few]
