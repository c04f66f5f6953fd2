"""Pushes to AWS through a network that breaks, and pushes killed at any moment: right, and published once."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy_runner.testing import run_stage
from tests.aws import TARGET, local_aws, package, smoke
from tests.bundles import stage
from tests.conftest import Project
from tests.faults.proxy import Fault, FaultProxy, Kind, Moment, Request

KINDS: tuple[Kind, ...] = (
    503, 429, 500, "reset", "partial", "commit_then_reset", "truncated", "slow",
)  # fmt: skip
LARGE_BYTES = 40 << 20
REDUCED = 8


def client(service: str, url: str) -> Any:
    return boto3.client(service, region_name="us-east-1", endpoint_url=url)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        yield url


class Remote:
    """A bucket and an endpoint of their own on the local AWS, so that no case sees another's."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.s3, self.sagemaker = client("s3", url), client("sagemaker", url)
        self.s3.create_bucket(Bucket=name)
        self.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def target(self) -> dict[str, Any]:
        return {"aws": {**TARGET["aws"], "bucket": self.name}}

    def assert_objects(self, expected: dict[str, str]) -> None:
        """Every object is there in one version, with its digest; nothing is left unfinished."""
        versions = self.s3.list_object_versions(Bucket=self.name)["Versions"]
        keys = [row["Key"] for row in versions]
        assert len(keys) == len(set(keys)), f"written twice: {keys}"
        found = {key: self.s3.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}
        digests = {key: hashlib.sha256(data).hexdigest() for key, data in found.items()}
        assert {k: v for k, v in digests.items() if k in expected} == expected
        assert self.s3.list_multipart_uploads(Bucket=self.name).get("Uploads", []) == []

    def assert_endpoint(self) -> None:
        """One model, one config, and the endpoint in service with it."""
        models = [
            m for m in self.sagemaker.list_models()["Models"] if m["ModelName"].startswith(f"{self.name}-")
        ]
        configs = self.sagemaker.list_endpoint_configs(NameContains=f"{self.name}-")["EndpointConfigs"]
        assert (len(models), len(configs)) == (1, 1)
        endpoint = self.sagemaker.describe_endpoint(EndpointName=self.name)
        assert endpoint["EndpointStatus"] == "InService"
        assert endpoint["EndpointConfigName"] == configs[0]["EndpointConfigName"]

    def stop(self) -> None:
        """End what the endpoint runs."""
        self.sagemaker.delete_endpoint(EndpointName=self.name)


def push_endpoint(folder: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    run = folder / f"run-{remote.name}-{len(list(folder.iterdir()))}"
    run.mkdir()
    run_stage(stage("push.sagemaker"), run, params={"endpoint": remote.name}, target=remote.target(),
              inputs={"package": package(run, 2), "smoke": smoke(run, 2)})  # fmt: skip


def push_large(folder: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    run = folder / f"run-{remote.name}-{len(list(folder.iterdir()))}"
    run_stage(stage("push.s3"), run, params={"prefix": "p"}, target=remote.target(),
              inputs={"artifact": large(folder)})  # fmt: skip


def large(folder: Path) -> Path:
    """Return a file of three parts."""
    path = folder / "weights.bin"
    if not path.exists():
        path.write_bytes(random.Random(0).randbytes(LARGE_BYTES))
    return path


def fault(kind: Kind, nth: int) -> Fault:
    headers = (("Retry-After", "1"),) if kind == 429 else ()
    return Fault(kind, nth=nth, headers=headers, delay_s=0.2)


def cases(count: int, reduced: bool) -> list[tuple[int, Kind]]:
    """Return every kind of fault at every request, or a sample that has every kind."""
    every = list(itertools.product(range(1, count + 1), KINDS))
    if not reduced:
        return every
    chance = random.Random(6)
    return [(chance.randint(1, count), kind) for kind in KINDS[:REDUCED]]


def assert_retry_after(requests: Sequence[Request]) -> None:
    """Where a try was answered by 429, the next one came no sooner than it asked for."""
    for index, request in enumerate(requests):
        if request.fault == 429:
            again = next(
                r for r in requests[index + 1 :] if (r.method, r.path) == (request.method, request.path)
            )
            assert again.time_s - request.time_s >= 1.0


def count_requests(push: Any, folder: Path, aws: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many requests a push makes at the least: how often it asks for a status varies."""
    remote = Remote(aws, "count")
    with FaultProxy(aws) as proxy:
        push(folder, remote, monkeypatch, proxy.url)
    polls = [r for r in proxy.requests if r.headers.get("x-amz-target") == "SageMaker.DescribeEndpoint"]
    return len(proxy.requests) - max(0, len(polls) - 2)


def endpoint_matrix(tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch, *, reduced: bool) -> int:
    count = count_requests(push_endpoint, tmp_path, aws, monkeypatch)
    happened = 0
    for number, (nth, kind) in enumerate(cases(count, reduced)):
        remote = Remote(aws, f"endpoint{number}")
        with FaultProxy(aws, [fault(kind, nth)]) as proxy:
            push_endpoint(tmp_path, remote, monkeypatch, proxy.url)
            happened += len(proxy.injected)
            assert_retry_after(proxy.requests)
        digest = hashlib.sha256(package(tmp_path, 2).read_bytes()).hexdigest()
        remote.assert_objects({f"models/{remote.name}/{digest}/model.tar.gz": digest})
        remote.assert_endpoint()
        remote.stop()
    return happened


def large_matrix(tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch, *, reduced: bool) -> int:
    count = count_requests(push_large, tmp_path, aws, monkeypatch)
    happened = 0
    for number, (nth, kind) in enumerate(cases(count, reduced)):
        remote = Remote(aws, f"large{number}")
        with FaultProxy(aws, [fault(kind, nth)]) as proxy:
            push_large(tmp_path, remote, monkeypatch, proxy.url)
            happened += len(proxy.injected)
            assert_retry_after(proxy.requests)
        assert_released(tmp_path, remote)
    return happened


def assert_released(tmp_path: Path, remote: Remote) -> None:
    """The large file is there once, and the pointer names it."""
    keys = [row["Key"] for row in remote.s3.list_objects_v2(Bucket=remote.name)["Contents"]]
    (key,) = [key for key in keys if key.endswith("weights.bin")]
    remote.assert_objects({key: hashlib.sha256(large(tmp_path).read_bytes()).hexdigest()})
    pointer = remote.s3.get_object(Bucket=remote.name, Key="p/latest.json")["Body"].read()
    assert key.split("/")[1] in pointer.decode()
    assert len(keys) == 3


def test_an_endpoint_is_right_and_made_once_whatever_the_network_does(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endpoint_matrix(tmp_path, aws, monkeypatch, reduced=True) == REDUCED


@pytest.mark.faults
def test_a_large_file_is_right_and_written_once_whatever_the_network_does(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert large_matrix(tmp_path, aws, monkeypatch, reduced=True) == REDUCED


@pytest.mark.faults
def test_every_request_of_an_endpoint_with_every_fault(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endpoint_matrix(tmp_path, aws, monkeypatch, reduced=False) >= 120


@pytest.mark.faults
def test_every_request_of_a_large_file_with_every_fault(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert large_matrix(tmp_path, aws, monkeypatch, reduced=False) >= 100


@pytest.mark.parametrize("status", [409, 412])
@pytest.mark.parametrize("kind", ["an object of somebody else", "nothing"])
def test_a_refused_condition_is_compared_before_it_counts(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch, status: int, kind: str
) -> None:
    from deploy_runner.errors import ConflictError, StageError

    remote = Remote(aws, "refused")
    digest = hashlib.sha256(package(tmp_path, 2).read_bytes()).hexdigest()
    key = f"models/refused/{digest}/model.tar.gz"
    body = b"<Error><Code>PreconditionFailed</Code></Error>"

    def meanwhile(moment: Moment, request: Request) -> None:
        if moment == "received" and request.method == "PUT" and kind != "nothing":
            remote.s3.put_object(Bucket="refused", Key=key, Body=b"somebody else's")

    with FaultProxy(aws, [Fault(status, "PUT", "model.tar.gz", body=body)], observe=meanwhile) as proxy:
        if kind == "nothing" and status == 409:
            push_endpoint(tmp_path, remote, monkeypatch, proxy.url)
            remote.assert_objects({key: digest})
        else:
            refused: type[Exception] = StageError
            said = "AWS rejected PutObject: PreconditionFailed"
            if kind != "nothing":
                refused, said = ConflictError, f"{key} has different content"
            with pytest.raises(refused, match=said):
                push_endpoint(tmp_path, remote, monkeypatch, proxy.url)
            assert remote.sagemaker.list_models()["Models"] == []


def live(project: Project, remote: Remote, url: str) -> list[str]:
    """Write a pipeline that pushes to a remote, and return the arguments that run it."""
    package(project.folder, 2)
    smoke(project.folder, 2)
    large(project.folder)
    project.pipeline(
        f"""
        endpoint:
          uses: push.sagemaker
          inputs: {{package: model.tar.gz, smoke: smoke.npz}}
          with: {{endpoint: {remote.name}}}
        release:
          uses: push.s3
          needs: [endpoint]
          inputs: {{artifact: weights.bin}}
          with: {{prefix: p, name: weights.bin}}
        """
    )
    project.write("live.yaml", f"""
        target: {{name: live, live: true, aws: {{region: us-east-1, bucket: {remote.name}, image_uri: "i:1",
                 role_arn: "arn:aws:iam::123456789012:role/r"}}}}
        """)  # fmt: skip
    project.env |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    return ["run", "--config", "live.yaml", "--json"]


class Killer:
    """Kills a run with all its processes at the `at`-th moment that the proxy sees."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, moment: Moment, request: Request) -> None:
        self.seen += 1
        if self.seen == self.at and self.process is not None:
            kill_all(self.process.pid)


def kill_all(pid: int) -> None:
    """Kill a run and its workers, which have sessions of their own."""
    import psutil

    everybody = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in everybody:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def kills(project: Project, aws: str, moments: Sequence[int] | None) -> int:
    """Kill a push at each of these moments (all, if None) and run it again; return how many were killed."""
    counter = Killer(0)
    remote = Remote(aws, "moments")
    with FaultProxy(aws, observe=counter) as proxy:
        project.cli(*live(project, remote, proxy.url))
    killed = 0
    for at in moments or range(1, counter.seen + 1):
        remote = Remote(aws, f"kill{at}")
        killer = Killer(min(at, counter.seen))
        with FaultProxy(aws, observe=killer) as proxy:
            killer.process = project.start(*live(project, remote, proxy.url))
            killer.process.communicate(timeout=120)
            killed += killer.process.returncode == -signal.SIGKILL
        project.cli(*live(project, remote, aws))
        digest = hashlib.sha256((project.folder / "model.tar.gz").read_bytes()).hexdigest()
        remote.assert_objects({f"models/{remote.name}/{digest}/model.tar.gz": digest})
        remote.assert_endpoint()
        remote.stop()
        keys = [row["Key"] for row in remote.s3.list_objects_v2(Bucket=remote.name)["Contents"]]
        assert sum(key.endswith("weights.bin") for key in keys) == 1
    assert os.listdir(project.folder / ".deploy-runner" / "tmp") == []
    return killed


@pytest.mark.slow
def test_a_killed_push_is_continued_and_published_once(tmp_path: Path, aws: str) -> None:
    chosen = random.Random(5).sample(range(1, 90), 1)
    assert kills(Project(tmp_path / "project"), aws, chosen) >= 1


@pytest.mark.faults
def test_a_push_killed_at_every_moment_is_continued_and_published_once(tmp_path: Path, aws: str) -> None:
    """The proxy sees 91 to 94 moments; after the last of them some runs have ended before they are killed."""
    assert kills(Project(tmp_path / "project"), aws, None) >= 80


@pytest.mark.slow
@pytest.mark.parametrize("part", [r"weights\.bin", r"manifest\.json", r"latest\.json"])
def test_an_answer_that_is_not_of_s3_is_not_believed(
    tmp_path: Path, aws: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A login page of the network answers 200 to whatever it is asked."""
    from deploy_runner.errors import StageError

    remote = Remote(aws, "portal")
    artifact = tmp_path / "weights.bin"
    artifact.write_bytes(b"weights")
    given: dict[str, Any] = {
        "inputs": {"artifact": artifact}, "params": {"prefix": "p", "name": "weights.bin"},
        "target": remote.target(),
    }  # fmt: skip
    page = Fault(200, "PUT", part, body=b"<html>Log in</html>", headers=(("Content-Type", "text/html"),))
    with FaultProxy(aws, [page]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(StageError, match=rf"s3://portal/p/.*{part} (is missing|differs) when read back"):
            run_stage(stage("push.s3"), tmp_path / "a", **given)
        run_stage(stage("push.s3"), tmp_path / "b", **given)
    keys = [row["Key"].rpartition("/")[2] for row in remote.s3.list_objects_v2(Bucket="portal")["Contents"]]
    assert sorted(keys) == ["latest.json", "manifest.json", "weights.bin"]
