"""Endpoints whose update, smoke test or rollback goes wrong: what serves in the end, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy_runner.errors import ConflictError, GateError, StageError
from tests.aws import answer, deploy, differing, local_aws, rolled_back, smoke
from tests.faults.proxy import Fault, FaultProxy, Moment, Request

pytestmark = pytest.mark.slow

FOREVER = 1_000_000


@pytest.fixture
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


def client(aws: str, service: str = "sagemaker") -> Any:
    return boto3.client(service, region_name="us-east-1", endpoint_url=aws)


def serves(aws: str, endpoint: str = "e") -> str:
    return str(client(aws).describe_endpoint(EndpointName=endpoint)["EndpointConfigName"])


def refusal(code: str, said: str) -> dict[str, Any]:
    body = json.dumps({"__type": code, "message": said}).encode()
    return {"body": body, "headers": (("x-amzn-ErrorType", code),)}


DENIED = refusal("AccessDeniedException", "User: u is not authorized to perform: sagemaker:InvokeEndpoint")
EXPIRED = refusal("ExpiredTokenException", "The security token included in the request is expired")
GONE_S = (("Retry-After", "3600"),)
"""A wait that is longer than a push may take."""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(
            {"kind": 403, **DENIED},
            "can't be done: AWS rejected InvokeEndpoint: AccessDeniedException: User: u is not authorized",
            id="no right to invoke",
        ),
        pytest.param({"kind": 503, "headers": GONE_S}, "can't be done: AWS rejected InvokeEndpoint: 503", id="503"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_taken_back(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], said: str
) -> None:
    faults = [Fault(method="POST", path="/invocations", times=FOREVER, **fault)]
    with FaultProxy(aws, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(GateError, match=f"the smoke test {said}.*; the new endpoint e was removed"):
            deploy(tmp_path, 2, tested=2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    assert client(aws).list_endpoints()["Endpoints"] == []
    deploy(tmp_path, 2, tested=2)
    before = serves(aws)
    with FaultProxy(aws, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(GateError, match=f"{said}.*; rolled back: e serves {before} again"):
            deploy(tmp_path, 3, tested=3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    assert answer(10.0) == 20.0


def test_what_can_be_neither_tested_nor_taken_back_is_not_in_sync(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(tmp_path, 2, tested=2)

    def expire(moment: Moment, request: Request) -> None:
        if "/invocations" in request.path:
            proxy.faults = [Fault(403, times=FOREVER, **EXPIRED)]

    with FaultProxy(aws, [Fault(403, path="/invocations", **EXPIRED)], observe=expire) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        said = "the smoke test can't be done: .*ExpiredTokenException.*; and e still serves it, since it can't be"
        with pytest.raises(GateError, match=said):
            deploy(tmp_path, 3, tested=3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    assert differing(tmp_path, 3) == {"smoke test": "not passed"}
    deploy(tmp_path, 3, tested=3)
    assert differing(tmp_path, 3) == {}
    assert "smoke-tested" in rolled_back(tmp_path)
    assert answer(10.0) == 20.0


def test_an_update_that_fails_keeps_what_a_rollback_goes_back_to(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(tmp_path, 2)
    first = serves(aws)
    deploy(tmp_path, 3)
    limit = refusal("ResourceLimitExceeded", "The account-level service limit is 0 Instances")
    with FaultProxy(aws, [Fault(400, target="UpdateEndpoint", **limit)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(StageError, match="AWS rejected UpdateEndpoint: ResourceLimitExceeded"):
            deploy(tmp_path, 4)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    assert answer(10.0) == 30.0
    assert f"e serves {first}" in rolled_back(tmp_path)
    assert answer(10.0) == 20.0


@pytest.mark.parametrize("asked", ["DescribeEndpoint", "UpdateEndpoint"], ids=["before", "with ours"])
@pytest.mark.parametrize(("theirs", "then"), [(4, 40.0), ("four", 30.0)], ids=["comes", "is rolled back"])
def test_an_update_of_somebody_else_that_is_under_way_is_a_conflict(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, theirs: float | str, then: float
) -> None:
    with suppress(GateError):
        deploy(tmp_path, theirs, endpoint="other")
    sagemaker = client(aws)
    (config,) = sagemaker.list_endpoint_configs(NameContains="other-")["EndpointConfigs"]
    name = config["EndpointConfigName"]
    deploy(tmp_path, 3)

    def update(moment: Moment, request: Request) -> None:
        if moment == "received" and request.headers.get("x-amz-target") == f"SageMaker.{asked}":
            proxy.observe = lambda moment, request: None
            sagemaker.update_endpoint(EndpointName="e", EndpointConfigName=name)

    with FaultProxy(aws, observe=update) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(ConflictError, match=f"somebody else is moving the endpoint e to {name}"):
            deploy(tmp_path, 2)
    while sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] != "InService":
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    assert answer(10.0) == then


def test_an_endpoint_of_somebody_else_that_has_failed_stays(aws: str, tmp_path: Path) -> None:
    with suppress(GateError):
        deploy(tmp_path, "two", endpoint="other")
    sagemaker = client(aws)
    (config,) = sagemaker.list_endpoint_configs(NameContains="other-")["EndpointConfigs"]
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName=config["EndpointConfigName"])
    with pytest.raises(ConflictError, match="endpoint e already exists and was not created by deploy-runner"):
        deploy(tmp_path, 2)
    with pytest.raises(StageError, match="no endpoint e is in service"):
        rolled_back(tmp_path)
    assert sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] == "Failed"
    deploy(tmp_path, 2, adopt=True)
    assert answer(10.0) == 20.0


def test_a_rollback_is_tested_with_what_the_package_was_tested_with(aws: str, tmp_path: Path) -> None:
    first = deploy(tmp_path, 2, tested=2)
    deploy(tmp_path, 3, tested=3)
    assert rolled_back(tmp_path).endswith("; smoke-tested")
    assert answer(10.0) == 20.0
    deploy(tmp_path, 3, tested=3)
    s3, digest = client(aws, "s3"), first.figures["package_sha256"]
    place = {"Bucket": "dry-run-models", "Key": f"models/e/{digest}/smoke.npz"}
    s3.put_object(**place, Body=smoke(tmp_path, 5).read_bytes())
    with pytest.raises(GateError, match=r"e-\w+: the smoke test failed: .*; rolled back: e serves"):
        rolled_back(tmp_path)
    assert answer(10.0) == 30.0
    s3.delete_object(**place)
    assert rolled_back(tmp_path, to=digest[:8]).endswith("no smoke.npz of it can be read in S3")
    assert answer(10.0) == 20.0


def test_an_asynchronous_endpoint_is_rolled_back_and_tested(aws: str, tmp_path: Path) -> None:
    deploy(tmp_path, 2, tested=2, asynchronous={})
    deploy(tmp_path, 3, tested=3, asynchronous={})
    assert rolled_back(tmp_path).endswith("; smoke-tested")


SDK_NAME = "pytorch-inference-2026-11-30-10-11-12-123"


@pytest.mark.parametrize("name", [SDK_NAME, "n" * 63], ids=["an SDK's", "the longest"])
def test_an_endpoint_with_a_name_of_the_sdk_is_adopted_and_given_back(
    aws: str, tmp_path: Path, name: str
) -> None:
    deploy(tmp_path, 2)
    sagemaker, theirs = client(aws), serves(aws)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=theirs)
    made = deploy(tmp_path, 3, tested=3, endpoint=name, adopt=True)
    names = [made.figures[kind] for kind in ("model", "endpoint_config", "endpoint")]
    assert max(map(len, names)) <= 63
    assert serves(aws, name) == made.figures["endpoint_config"]
    assert "not smoke-tested" in rolled_back(tmp_path, name)
    assert serves(aws, name) == theirs
    digest = made.figures["package_sha256"]
    assert rolled_back(tmp_path, name, to=digest[:10]).endswith("; smoke-tested")


def test_a_rollback_takes_no_config_of_an_endpoint_whose_name_contains_this_ones(
    aws: str, tmp_path: Path
) -> None:
    deploy(tmp_path, 2)
    digest = deploy(tmp_path, 3, endpoint="the-e-2").figures["package_sha256"]
    deploy(tmp_path, 3, endpoint="e-2")
    with pytest.raises(StageError, match=f"no package {digest[:10]} was deployed to e "):
        rolled_back(tmp_path, to=digest[:10])


def test_the_same_package_is_registered_in_a_second_group(aws: str, tmp_path: Path) -> None:
    for group in ("one", "two", "two"):
        deploy(tmp_path, 2, registry={"group": group})
        rows = client(aws).list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]
        assert [row["ModelPackageVersion"] for row in rows] == [1]
