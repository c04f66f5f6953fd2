"""The names of what a push makes on AWS, and what AWS's client says of a request that it doesn't send."""

from __future__ import annotations

import re

import pytest

from deploy_runner.errors import StageError
from deploy_runner.stages.push.aws.client import plainly
from deploy_runner.stages.push.aws.packed_model import named


def test_the_name_of_an_owner_that_fits_is_as_it_always_was() -> None:
    """Another name would make every model and endpoint config again."""
    assert named("digits", "model", "s3://b/k", {"A": "b"}) == "digits-89f3c33cfecb32a5"
    owner = "o" * 40
    assert named(owner, 1) == f"{owner}-080a9ed428559ef6"


@pytest.mark.parametrize(
    "owner",
    [
        "pytorch-inference-2026-11-30-10-11-12-123",
        "n" * 46,
        "n" * 47,
        "n" * 63,
        "a-" * 31 + "b",
        "a" + "-" * 61 + "b",
    ],
)
def test_every_name_is_one_that_aws_takes_and_belongs_to_one_owner(owner: str) -> None:
    name = named(owner, 1)
    assert len(name) <= 63
    assert re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9])*", name)
    assert name != named(f"{owner[:-1]}Z", 1)


def test_every_reason_why_a_request_is_not_sent_is_said() -> None:
    import boto3

    sagemaker = boto3.client(
        "sagemaker", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    said = (
        r"AWS doesn't take these parameters: Invalid length for parameter ExecutionRoleArn, value: 1, valid min "
        r"length: 20; Invalid type for parameter EnableNetworkIsolation, value: 3, .*$"
    )
    with pytest.raises(StageError, match=said), plainly():
        sagemaker.create_model(ModelName="m", ExecutionRoleArn="r", EnableNetworkIsolation=3)
