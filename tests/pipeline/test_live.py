"""A live target: a run converges, `plan` and `status` read the remote, `rollback` and `promote` change it back.

The remote is the local AWS, which the clients find by AWS_ENDPOINT_URL, as any other endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.aws import answer, live_project, local_aws, release
from tests.conftest import Project
from tests.machines import Share, machine, objects

LIVE = ("--config", "configs/production.yaml")


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        yield live_project(tmp_path / "project", url)


def deployed(project: Project) -> str:
    """Return the digest of the package that the last run has pushed."""
    figures: dict[str, Any] = project.run(*LIVE)["stages"]["endpoint"]["figures"]
    return str(figures["package_sha256"])


def test_a_live_push_converges_and_the_second_changes_nothing(live: Project) -> None:
    assert live.states(*LIVE) == {"endpoint": "ran"}
    assert live.states(*LIVE) == {"endpoint": "converged"}
    assert answer(10.0) == 20.0


@pytest.mark.slow
def test_status_reads_a_package_that_another_machine_built(live: Project, share: Share) -> None:
    live.pipeline(
        """
        built: {uses: run.command, inputs: {given: model.tar.gz}, outputs: {package: model.tar.gz},
                with: {command: "cp $INPUT_GIVEN $OUTPUT_PACKAGE"}}
        endpoint:
          uses: push.sagemaker
          inputs: {package: "${{ stages.built.outputs.package }}", smoke: smoke.npz}
          with: {endpoint: e}
        """,
        head="cache: {push: true}\n",
    )
    one, two, three = (machine(live, share, name) for name in ("one", "two", "three"))
    live.run(*LIVE, **one)
    assert live.cli("status", *LIVE, **two).stdout.splitlines()[-1] == "in sync"
    assert len(objects(two)) == 1
    share.remove("objects")
    said = live.cli("status", *LIVE, exits=1, **three).stderr
    assert "built.package is missing in the store, and the shared cache does not have it any more" in said
    assert "run `deploy-runner run pipeline.yaml built` to rebuild it" in said


@pytest.mark.slow
def test_plan_and_status_say_what_differs_and_change_nothing(live: Project) -> None:
    plan = live.cli("plan", *LIVE).stdout
    assert "the bucket models" not in plan
    assert "object: missing, wanted s3://models/models/e/" in plan
    assert "endpoint e: missing, wanted InService" in plan
    assert live.cli("status", *LIVE, exits=1).stdout.splitlines()[0] == "endpoint:"
    live.run(*LIVE)
    assert "the remote matches the pipeline" in live.cli("plan", *LIVE).stdout
    assert live.cli("status", *LIVE).stdout.splitlines()[-1] == "in sync"
    release(live, 3)
    said = json.loads(live.cli("status", *LIVE, "--json", exits=1).stdout)
    assert not said["in_sync"]
    differing = {row["what"] for row in said["stages"]["endpoint"] if not row["in_sync"]}
    assert differing == {"object", "model package", "package", "endpoint config"}
    assert answer(10.0) == 20.0


@pytest.mark.slow
def test_rollback_serves_what_was_there_before_and_any_earlier_digest(live: Project) -> None:
    digests = []
    for factor in (2, 3, 4):
        release(live, factor)
        digests.append(deployed(live))
    assert answer(10.0) == 40.0
    said = live.cli("rollback", "endpoint", *LIVE).stdout
    assert f"(package {digests[1][:12]}) instead of" in said
    assert answer(10.0) == 30.0
    live.cli("rollback", "endpoint", *LIVE, "--to", digests[0][:10])
    assert answer(10.0) == 20.0
    wrong = live.cli("rollback", "endpoint", *LIVE, "--to", "0000", exits=1).stderr
    assert "no package 0000 was deployed to e (deployed packages: " in wrong
    assert live.states(*LIVE) == {"endpoint": "ran"}
    assert answer(10.0) == 40.0


@pytest.mark.slow
def test_promote_approves_the_registered_version(live: Project) -> None:
    live.run(*LIVE)
    assert (
        live.cli("promote", "endpoint", *LIVE).stdout == "g/1 is now Approved, it was PendingManualApproval\n"
    )
    assert live.cli("promote", "endpoint", *LIVE).stdout == "g/1 is already Approved\n"
    version = boto3.client("sagemaker", region_name="us-east-1").describe_model_package(ModelPackageName="g")
    assert version["ModelApprovalStatus"] == "Approved"
    assert "deploy-runner-digest" in version["CustomerMetadataProperties"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rollback", "endpoint"], "the target dry-run is a dry run, which has no remote state"),
        (["status"], "the target dry-run is a dry run, which has no remote state"),
        (
            ["rollback", *LIVE],
            "rollback needs the name of one push stage (`deploy-runner rollback STAGE --config FILE`)",
        ),
        (["rollback", "nope", *LIVE], "there is no stage 'nope'"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(live: Project, arguments: list[str], said: str) -> None:
    assert said in live.cli(*arguments, exits=2).stderr


@pytest.mark.slow
def test_nothing_was_deployed_before_is_said(live: Project) -> None:
    live.run(*LIVE)
    assert "nothing was deployed to e before" in live.cli("rollback", "endpoint", *LIVE, exits=1).stderr


def test_without_a_remote_a_plan_says_so_and_a_secret_is_not_told(live: Project) -> None:
    broken = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = live.cli("status", *LIVE, exits=1, **broken)
    assert "AWS can't be reached" in done.stderr
    assert "canary-of-a-secret-key" not in done.stdout + done.stderr
    assert "the remote can't be read: AWS can't be reached" in live.cli("plan", *LIVE, **broken).stdout


NOBODY = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "HF_ENDPOINT": "http://127.0.0.1:9",
}
KEYS = "aws_access_key_id = x\naws_secret_access_key = y\n"
NO_KEYS, NO_TOKEN = "no AWS credentials were found", "no Hub token was found"


@pytest.mark.parametrize(
    ("uses", "file", "env", "lacks"),
    [
        pytest.param("s3", "", {}, NO_KEYS, id="no keys"),
        pytest.param("s3", "", {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}, "", id="keys", marks=pytest.mark.slow),
        pytest.param("s3", "", {"AWS_PROFILE": "other"}, "The config profile (other) could not be found", id="profile"),
        pytest.param("s3", ".aws/credentials", {}, "", id="credentials at their place"),
        pytest.param("s3", ".aws/config", {}, "", id="config at its place", marks=pytest.mark.slow),
        pytest.param("s3", "keys", {"AWS_SHARED_CREDENTIALS_FILE": "{home}/keys"}, "", id="credentials elsewhere", marks=pytest.mark.slow),
        pytest.param("hub", "", {}, NO_TOKEN, id="no token"),
        pytest.param("hub", "", {"HUGGING_FACE_HUB_TOKEN": "hf_x"}, "", id="token by its old name", marks=pytest.mark.slow),
        pytest.param("hub", ".cache/huggingface/token", {}, "", id="token at its place"),
        pytest.param("hub", "hf/token", {"HF_HOME": "~/hf"}, "", id="token below HF_HOME", marks=pytest.mark.slow),
        pytest.param("hub", ".cache/huggingface/token", {"HF_HOME": "{home}/hf"}, NO_TOKEN, id="token of another home",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_doctor_finds_the_credentials_that_a_push_finds(
    tmp_path: Path, uses: str, file: str, env: dict[str, str], lacks: str
) -> None:
    project, home = Project(tmp_path / "project"), tmp_path / "home"
    project.write("a.txt", "x")
    stage = {
        "s3": "{uses: push.s3, inputs: {artifact: a.txt}, with: {prefix: p, bucket: bbb}}",
        "hub": "{uses: push.hub, inputs: {files: {a.txt: a.txt}}, with: {repo: o/n}}",
    }[uses]
    project.pipeline(
        f"push: {stage}", head="target: {name: production, live: true, aws: {region: us-east-1}}\n"
    )
    if file:
        project.write(f"../home/{file}", f"[default]\n{KEYS}" if uses == "s3" else "hf_x")
    given = {**NOBODY, "HOME": str(home), **{n: v.format(home=home) for n, v in env.items()}}
    assert (lacks or "can't be reached") in project.cli("status", exits=1, **given).stderr
    said = project.cli("doctor", exits=1 if lacks else 0, **given).stdout
    (line,) = [line for line in said.splitlines() if f"credentials of push.{uses}: " in line]
    assert line.startswith("FAIL" if lacks else "ok")
    assert lacks in line
