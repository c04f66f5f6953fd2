"""Two pushes to one endpoint at the same moment: who comes late stops, and breaks nothing of the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy_runner.errors import ConflictError
from tests.aws import answer, deploy, local_aws
from tests.faults.proxy import FaultProxy, Moment, Request

pytestmark = pytest.mark.slow


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        yield url


def _client(url: str) -> Any:
    return boto3.client("sagemaker", region_name="us-east-1", endpoint_url=url)


def _settled(sagemaker: Any) -> None:
    while sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] != "InService":
        pass


def _push_while(
    aws: str, monkeypatch: pytest.MonkeyPatch, folder: Path, call: str, other: Callable[[], None], **push: Any
) -> None:
    """Push factor 3, and let somebody else act before the first such call reaches AWS."""
    done: list[str] = []

    def observe(moment: Moment, request: Request) -> None:
        asked = request.headers.get("x-amz-target", "") + request.path
        if moment == "received" and call in asked and not done:
            done.append(asked)
            other()

    with FaultProxy(aws, observe=observe) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        try:
            deploy(folder, 3, **push)
        finally:
            monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
            assert done, f"{call} was never asked for"


def _tags(sagemaker: Any) -> dict[str, str]:
    arn = sagemaker.describe_endpoint(EndpointName="e")["EndpointArn"]
    return {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]}


@pytest.mark.parametrize("tested", [None, 3], ids=["untested", "tested"])
def test_who_loses_the_race_to_create_leaves_the_winners_endpoint(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tested: float | None
) -> None:
    sagemaker = _client(aws)
    deploy(tmp_path, 2)
    config = sagemaker.describe_endpoint(EndpointName="e")["EndpointConfigName"]
    sagemaker.delete_endpoint(EndpointName="e")
    tags = [{"Key": "of", "Value": "the winner"}]

    def create() -> None:
        sagemaker.create_endpoint(EndpointName="e", EndpointConfigName=config, Tags=tags)
        _settled(sagemaker)

    with pytest.raises(ConflictError, match=f"endpoint e has the config {config}, not e-.* somebody else"):
        _push_while(aws, monkeypatch, tmp_path, "CreateEndpoint/", create, tested=tested)
    assert answer(10.0) == 20.0
    assert _tags(sagemaker) == {"of": "the winner"}


def test_a_failed_smoke_test_takes_back_only_what_this_push_has_set(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sagemaker = _client(aws)
    deploy(tmp_path, 4)
    config = sagemaker.describe_endpoint(EndpointName="e")["EndpointConfigName"]
    deploy(tmp_path, 2)

    def move() -> None:
        sagemaker.update_endpoint(EndpointName="e", EndpointConfigName=config)
        _settled(sagemaker)

    with pytest.raises(ConflictError, match=f"endpoint e has the config {config}, not e-"):
        _push_while(aws, monkeypatch, tmp_path, "/invocations", move, tested=3)
    assert answer(10.0) == 40.0
