"""An error in one line: the reason stays, whatever a library puts before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from botocore.exceptions import ClientError

from deploy_runner.server.reasons import first_line, reason


class OutOfRange(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(x, torch.ones(3, 2))


class Catting(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(x, 0)  # type: ignore[arg-type]


class ToNumpy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.numpy()


class Mixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return {1: x, "a": x}


def _raise(error: Exception) -> None:
    raise error


def _error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


REFUSED = {"Error": {"Code": "AccessDenied", "Message": "no right to s3:PutObject"}}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("fails", "said"),
    [
        pytest.param(
            lambda: torch.jit.script(OutOfRange())(torch.tensor([7])), "RuntimeError: index out of range in self",
            id="the TorchScript interpreter, after its traceback",
        ),
        pytest.param(
            lambda: torch.nn.Linear(1, 1).load_state_dict({"weight": torch.ones(1, 1)}),
            'Error(s) in loading state_dict for Linear: Missing key(s) in state_dict: "bias".',
            id="load_state_dict, on the next line",
        ),
        pytest.param(
            lambda: torch.jit.script(Catting()),
            "Expected a value of type 'List[Tensor]' for argument 'tensors' but instead found type 'Tensor'.",
            id="TorchScript's compiler, after the signatures",
        ),
        pytest.param(
            lambda: torch.jit.script(ToNumpy()),
            "'Tensor' object has no attribute or method 'numpy'.",
            id="TorchScript's compiler, before the place",
        ),
        pytest.param(
            lambda: torch.jit.trace(Mixed(), torch.ones(2)),
            "Dictionary inputs to traced functions must have consistent type. Found int and str",
            id="the tracer, after the tensors",
        ),
        pytest.param(
            lambda: _raise(ClientError(REFUSED, "PutObject")),
            "An error occurred (AccessDenied) when calling the PutObject operation: no right to s3:PutObject",
            id="botocore, after its colon",
        ),
        pytest.param(lambda: _raise(ValueError("one\ntwo")), "one", id="the first line"),
        pytest.param(lambda: _raise(ValueError()), "ValueError", id="nothing but the class"),
        pytest.param(
            lambda: _raise(OSError(2, "No such file", "/tmp/w/inputs/a.pt")), "[Errno 2] No such file: 'a.pt'",
            id="of a path the last part",
        ),
    ],
)  # fmt: skip
def test_the_reason_is_kept(fails: Callable[[], object], said: str) -> None:
    assert first_line(_error_of(fails)) == said


def test_a_text_that_announces_nothing_ends_without_a_colon() -> None:
    assert reason("the body is no JSON:") == "the body is no JSON"
