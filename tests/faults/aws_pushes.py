"""Pushes to AWS to disturb, each on a remote of its own; as a program, one push: URL REMOTE FOLDER NAME.

`PUSHES` names what is there before and what is then disturbed.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from deploy_runner.errors import GateError
from deploy_runner.sdk import Context
from deploy_runner.testing import StageRun, run_stage
from tests.aws import TARGET, package, smoke
from tests.bundles import stage

__all__ = ["PUSHES", "Disturbed", "Remote"]


@dataclass
class Remote:
    """A bucket and an endpoint of one name on the local AWS, so that no case sees another's."""

    url: str
    name: str
    folder: Path

    def place(self) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name="us-east-1", endpoint_url=self.url)

    @property
    def target(self) -> dict[str, Any]:
        return {"aws": {**TARGET["aws"], "bucket": self.name}}

    def run(self, uses: str, inputs: dict[str, Path], **params: Any) -> StageRun:
        return run_stage(stage(uses), self.place(), inputs=inputs, params=params, target=self.target)

    def deploy(self, factor: float, tested: float | None = None, **params: Any) -> StageRun:
        place = self.place()
        given = {"package": package(place, factor), "smoke": smoke(place, tested or factor)}
        return self.run("push.sagemaker", given, endpoint=self.name, **params)

    def state(self) -> dict[str, Any]:
        """Return what is there: every object's versions, models, configs, packages, the endpoint and its tags."""
        s3, sagemaker = self.client("s3"), self.client("sagemaker")
        s3.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})
        keys = [row["Key"] for row in s3.list_object_versions(Bucket=self.name).get("Versions", [])]
        own = f"{self.name}-"
        models = [m for m in sagemaker.list_models()["Models"] if m["ModelName"].startswith(own)]
        configs = sagemaker.list_endpoint_configs(NameContains=own)["EndpointConfigs"]
        versions = sagemaker.list_model_packages(ModelPackageGroupName=self.name)
        jobs = sagemaker.list_transform_jobs(NameContains=own)["TransformJobSummaries"]
        state: dict[str, Any] = {
            "keys": sorted(self._plain(key) for key in keys if "/async/" not in key),
            "unfinished": s3.list_multipart_uploads(Bucket=self.name).get("Uploads", []),
            "made": (len(models), len(configs), len(versions["ModelPackageSummaryList"]), len(jobs)),
        }
        if self.has_endpoint():
            endpoint = sagemaker.describe_endpoint(EndpointName=self.name)
            rows = sagemaker.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
            tags = {row["Key"]: row["Value"] for row in rows}
            order = sorted(configs, key=lambda config: config["CreationTime"])
            numbers = {config["EndpointConfigName"]: str(n) for n, config in enumerate(order)}
            for tag in ("deploy-runner:previous", "deploy-runner:tested"):
                tags[tag] = " ".join(numbers[name] for name in tags.get(tag, "").split())
            state["endpoint"] = (endpoint["EndpointStatus"], numbers[endpoint["EndpointConfigName"]], tags)
        return state

    def _plain(self, key: str) -> str:
        """Return a key as it is on every remote: digests of what a remote's name is part of are left out."""
        return re.sub(r"-[0-9a-f]{16}\b", "-DIGEST", key.replace(self.name, "NAME"))

    def has_endpoint(self) -> bool:
        found = self.client("sagemaker").list_endpoints(NameContains=self.name)["Endpoints"]
        return self.name in [endpoint["EndpointName"] for endpoint in found]

    def stop(self) -> None:
        """End what the endpoint runs."""
        if self.has_endpoint():
            self.client("sagemaker").delete_endpoint(EndpointName=self.name)


def prepared(remote: Remote) -> None:
    """Make the bucket and the group, so that all remotes begin alike."""
    remote.client("s3").create_bucket(Bucket=remote.name)
    remote.client("sagemaker").create_model_package_group(ModelPackageGroupName=remote.name)


def two_releases(remote: Remote) -> None:
    prepared(remote)
    remote.deploy(2)
    remote.deploy(3)


def first(remote: Remote) -> None:
    remote.deploy(2, registry={"group": remote.name})


def image(remote: Remote, digest: str = "a" * 64) -> None:
    uri = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/digits@sha256:{digest}"
    remote.run("push.sagemaker", {}, endpoint=remote.name, image_uri=uri, registry={"group": remote.name})


def first_image(remote: Remote) -> None:
    prepared(remote)
    image(remote)


def update_image(remote: Remote) -> None:
    image(remote, "b" * 64)


def asynchronous(remote: Remote) -> None:
    remote.deploy(2, asynchronous={})


def scaled(remote: Remote) -> None:
    remote.deploy(2, autoscaling={"min": 1, "max": 3, "target": 100.0})


def update(remote: Remote) -> None:
    remote.deploy(4)


def refused(remote: Remote) -> None:
    try:
        remote.deploy(4, tested=5)
    except GateError as error:
        if "rolled back" not in error.message:
            raise
    else:
        raise AssertionError("it was not refused")


def roll_back(remote: Remote) -> None:
    kind = stage("push.sagemaker")
    ctx = Context(stage="push", workdir=remote.place(), target=remote.target)
    assert (
        kind()
        .rollback(ctx, kind.Params.model_validate({"endpoint": remote.name}), "")
        .endswith("; smoke-tested")
    )


def transform(remote: Remote) -> None:
    data = remote.folder / "data"
    data.mkdir(exist_ok=True)
    for n in range(2):
        (data / f"{n}.json").write_text(json.dumps({"inputs": {"x": [n]}}))
    given = {"package": package(remote.folder, 2), "data": data}
    made = remote.run("push.transform", given, job=remote.name)
    answers = [json.loads((made["answers"] / f"{n}.json.out").read_text()) for n in range(2)]
    assert answers == [{"outputs": {"y": [0.0]}}, {"outputs": {"y": [2.0]}}]


def release(remote: Remote) -> None:
    artifact = remote.folder / "artifact"
    artifact.mkdir(exist_ok=True)
    for name in ("a.txt", "b.txt"):
        (artifact / name).write_text(name)
    remote.run("push.s3", {"artifact": artifact}, prefix="p")


class Disturbed(NamedTuple):
    """What is made before, and the push that is disturbed; `repeats` if another run of it completes it."""

    before: Callable[[Remote], None]
    push: Callable[[Remote], None]
    repeats: bool = True


PUSHES = {
    disturbed.push.__name__: disturbed
    for disturbed in (
        Disturbed(prepared, first), Disturbed(prepared, asynchronous), Disturbed(prepared, scaled),
        Disturbed(two_releases, update), Disturbed(two_releases, refused),
        Disturbed(prepared, image), Disturbed(first_image, update_image),
        # Another rollback goes back to what the first one has left.
        Disturbed(two_releases, roll_back, repeats=False),
        Disturbed(prepared, transform), Disturbed(prepared, release),
    )
}  # fmt: skip


if __name__ == "__main__":
    PUSHES[sys.argv[4]].push(Remote(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
