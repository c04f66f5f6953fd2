"""Ask what is deployed for the answers that the packed model gave: the smoke test of an endpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy_runner.sdk import GateError, StageError

from . import _s3
from ._answers import answering
from ._axes import rows
from ._bundle import Case, read_cases
from ._parity import compare, within

Invoke = Callable[[bytes], bytes]
"""Sends a JSON body and returns the JSON answer."""

JSON_TYPE = "application/json"
_ROWS = 8
_SHARE = 1e-4
"""Of its output's largest value: another machine orders sums differently."""
_MOST_BYTES = 4 << 20
"""What the smallest kind of endpoint, a serverless one, takes:
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html"""
_POLL_S = 0.2


def request_body(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays as the JSON that `code/inference.py` takes."""
    return json.dumps({"inputs": {name: array.tolist() for name, array in arrays.items()}}).encode()


def few_rows(case: Case) -> dict[str, Any]:
    """Return the first samples of each input; whole those that have none, e.g. a mask for all of them."""
    axes = {name: case.batch.get(f"in/{name}") for name in case.inputs}
    return {name: rows(array, axes[name], slice(_ROWS)) for name, array in case.inputs.items()}


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
        raise GateError(f"the smoke test fails: {error.message}", fix=error.fix) from error
    if parity.excess > 0:
        said = parity.beyond(atol, rtol, "is allowed")
        raise GateError(f"the smoke test fails: the answers differ from the packed model's by {said}; "
                        f"worst at {parity.worst}")  # fmt: skip
    return parity.samples


def _answer(invoke: Invoke, arrays: Mapping[str, Any]) -> dict[str, Any]:
    said = invoke(request_body(arrays))
    try:
        return dict(json.loads(said)["outputs"])
    except (ValueError, KeyError, TypeError):
        shown = said[:200].decode("utf-8", "replace")
        raise GateError(f"the answer is not {{'outputs': {{name: values}}}}: {shown}") from None


def by_request(session: Any, endpoint: str) -> Invoke:
    """Return what invokes an endpoint and waits for the answer."""
    client = session.client("sagemaker-runtime")

    def once(body: bytes) -> bytes:
        given = client.invoke_endpoint(
            EndpointName=endpoint, Body=body, ContentType=JSON_TYPE, Accept=JSON_TYPE
        )
        return bytes(given["Body"].read())

    def invoke(body: bytes) -> bytes:
        try:
            return _s3.again(lambda: once(body))
        except client.exceptions.ModelError as error:
            raise _refused(error) from error

    return invoke


def by_file(session: Any, endpoint: str, *, inbox: str, wait_s: float) -> Invoke:
    """Return what invokes an asynchronous endpoint: the body is put below `inbox` (`s3://…`)."""
    import hashlib

    client, s3 = session.client("sagemaker-runtime"), session.client("s3")

    def invoke(body: bytes) -> bytes:
        source = f"{inbox}/{hashlib.sha256(body).hexdigest()[:16]}.json"
        s3.put_object(**_place(source), Body=body, ContentType=JSON_TYPE)
        given = client.invoke_endpoint_async(
            EndpointName=endpoint, InputLocation=source, ContentType=JSON_TYPE, Accept=JSON_TYPE
        )
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if (answer := _read(s3, given["OutputLocation"])) is not None:
                return answer
            if (failure := _read(s3, given.get("FailureLocation", ""))) is not None:
                said = failure[:200].decode("utf-8", "replace")
                raise GateError(f"the container fails: {said}")
            time.sleep(_POLL_S)
        raise GateError(f"{endpoint} has put no answer at {given['OutputLocation']} after {wait_s:.0f} s")

    return invoke


def _refused(error: Any) -> GateError:
    status = error.response.get("OriginalStatusCode", "")
    said = str(error.response.get("OriginalMessage", error)).partition("\n")[0]
    return GateError(f"the container answers {status}: {said}".replace(" :", ":"))


def _place(uri: str) -> dict[str, str]:
    parts = urlsplit(uri)
    return {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}


def _read(s3: Any, uri: str) -> bytes | None:
    if not uri:
        return None
    return _s3.unless_missing(lambda: _s3.again(lambda: bytes(s3.get_object(**_place(uri))["Body"].read())))


def packed_cases(cases: Sequence[Case], run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Case]:
    """Return the cases, a few samples of each, with what the packed model answers to them."""
    few = [(case.name, few_rows(case)) for case in cases]
    return [Case(name, inputs, run(inputs)) for name, inputs in few]
