"""What a live target lacks, or has that AWS would refuse, is told at once and before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.aws import local_aws
from tests.bundles import stage
from tests.conftest import Project

ROLE = "arn:aws:iam::123456789012:role/r"
ECR = "763104351884.dkr.ecr.{}.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
PUSHES = """
made: {uses: run.command, inputs: {given: in.txt}, outputs: {text: o}, with: {command: "cp $INPUT_GIVEN $OUTPUT_TEXT"}}
endpoint: {uses: push.sagemaker, inputs: {package: "${{ stages.made.outputs.text }}"}, with: {endpoint: e}}
release: {uses: push.s3, inputs: {artifact: "${{ stages.made.outputs.text }}"}, with: {prefix: p}}
"""
LACKS = (
    "pipeline.yaml: the target production doesn't set target.aws.region, target.aws.bucket, target.aws.role_arn and "
    "target.aws.image_uri, which endpoint and release need "
    "(add `target: {aws: {region: …, bucket: …, role_arn: …, image_uri: …}}`)"
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    project.write("in.txt", "text")
    project.pipeline(PUSHES, head="target: {name: production, live: true}\n")
    project.env["HOME"] = str(tmp_path)
    return project


@pytest.mark.parametrize(
    "command", ["validate", pytest.param("plan", marks=pytest.mark.slow), pytest.param("run", marks=pytest.mark.slow)]
)  # fmt: skip
def test_everything_that_is_missing_is_one_sentence(project: Project, command: str) -> None:
    assert project.cli(command, exits=2).stderr.removeprefix("error: ").strip().endswith(LACKS)
    assert not (project.folder / ".deploy-runner/runs").exists()


@pytest.mark.slow
def test_doctor_status_and_rollback_say_it_too(project: Project) -> None:
    (said,) = [line for line in project.cli("doctor", exits=1).stdout.splitlines() if "target: " in line]
    assert said == f"FAIL target: {LACKS.removeprefix('pipeline.yaml: ')}"
    for command in ("status", "rollback"):
        said = project.cli(command, "release", exits=2, AWS_REGION="eu-west-1").stderr
        assert "doesn't set target.aws.bucket, which release needs (add `target: {aws: {bucket: …}}`)" in said


@pytest.mark.slow
def test_what_is_not_pushed_and_a_dry_run_need_no_settings(project: Project) -> None:
    assert "made  miss" in project.cli("plan", "made").stdout
    project.cli("validate", "--set", "target.live=false")
    project.cli("run", "release", "--set", "target.live=false")


@pytest.mark.slow
def test_a_region_in_the_environment_is_enough(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        project.env |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        sets = ("--set", "target.aws={bucket: releases, create_bucket: true}")
        project.cli("run", "release", *sets, AWS_REGION="eu-west-1")
        assert "region eu-west-1" in project.cli("doctor", *sets, exits=None, AWS_REGION="eu-west-1").stdout


def test_a_value_that_aws_refuses_is_told_where_it_is_written(project: Project) -> None:
    project.write(
        "live.yaml",
        f"""
        target:
          aws: {{region: eu-central-1, bucket: Your-Models, image_uri: "{ECR.format("us-east-1")}",
                role_arn: "{ROLE}"}}
        """,
    )
    said = project.cli("validate", "--config", "live.yaml", exits=2).stderr
    assert "live.yaml:2:39: " in said
    assert (
        "target.aws.bucket: 'Your-Models' is not a valid name of an S3 bucket: it has 3 to 63 small letters"
        in said
    )
    assert "target.aws.image_uri: the image lies in us-east-1, and the region is eu-central-1" in said


def wrong(
    uses: str, aws: dict[str, Any], params: dict[str, Any] | None = None, **environ: str
) -> dict[str, str]:
    """Return what is wrong with a live target."""
    return dict(stage(uses)().check_target(params or {}, {"live": True, "aws": aws}, environ))


def test_the_registry_of_a_pack_is_a_setting_too() -> None:
    def found(registry: object, oci: object, **environ: str) -> dict[str, str]:
        return dict(stage("push.oci")().check_target({"registry": registry}, {"oci": oci}, environ))

    assert found(None, None) == {"oci.registry": ""}
    assert found(None, {"registry": "https://ghcr.io"}) == {
        "oci.registry": "'https://ghcr.io' is no HOST or HOST:PORT"
    }
    assert found("ghcr.io", None) == {}
    assert found({"$secret": "REGISTRY"}, None) == {}
    assert found(None, {}, OCI_REGISTRY="127.0.0.1:5000") == {"oci.registry": ""}


def test_a_server_of_mlflow_and_a_namespace_of_the_hub_are_settings_too(project: Project) -> None:
    mlflow, hub = stage("push.mlflow")(), stage("push.hub")()
    assert dict(mlflow.check_target({}, {"mlflow": {}}, {})) == {"mlflow.tracking_uri": ""}
    assert mlflow.check_target({}, {"mlflow": {"tracking_uri": "https://mlflow.example.com"}}, {}) == {}
    (said,) = hub.check_target({"repo": "digits"}, {"hub": {"namespace": "Our Team"}}, {}).values()
    assert said.startswith("'Our Team/digits' is not a valid repository name on the Hub")
    for repo in ("us/digits", {"$secret": "REPO"}):
        assert hub.check_target({"repo": repo}, {"hub": {"namespace": "Our Team"}}, {}) == {}
    assert hub.check_target({"repo": "digits"}, {}, {}) == {}
    project.write("m/model.onnx", "x")
    project.pipeline(
        """
        pack: {uses: push.oci, inputs: {artifact: in.txt}, with: {repository: us/digits}}
        hub: {uses: push.hub, inputs: {files: {a: in.txt}}, with: {repo: digits}}
        versions: {uses: push.mlflow, inputs: {model: m}, with: {name: digits}}
        """,
        head="target: {name: live, live: true, hub: {namespace: -us-}}\n",
    )
    missing, wrong = project.cli("run", exits=2).stderr.splitlines()[1:]
    assert (
        "doesn't set target.oci.registry and target.mlflow.tracking_uri, which pack and versions need"
        in missing
    )
    assert "pipeline.yaml:3:51: target.hub.namespace: '-us-/digits' is not a valid repository name" in wrong


def test_inputs_that_do_not_go_with_the_parameters_are_told_by_validate(project: Project) -> None:
    project.write("m/model.onnx", "x")
    endpoint, quantize = (
        "uses: push.sagemaker, inputs: {package: in.txt",
        "uses: openvino.quantize, inputs: {model: m",
    )
    project.pipeline(
        f"""
        tried: {{{endpoint}, shadow: in.txt}}, with: {{endpoint: e}}}}
        shared: {{{endpoint}}}, with: {{endpoint: e, shadow: {{percent: 5}}}}}}
        both: {{{endpoint}, shadow: in.txt}}, with: {{endpoint: e, shadow: {{}}}}}}
        io: {{uses: model.io, inputs: {{model: m, golden: m}}}}
        int8: {{{quantize}, reference: m, data: in.txt}}}}
        nothing: {{uses: package.kserve, inputs: {{}}, with: {{name: k}}}}
        nowhere: {{uses: package.kserve, inputs: {{repository: m}}, with: {{name: k}}}}
        """
    )
    said = project.cli("validate", exits=2).stderr.splitlines()[1:]
    places = [line.partition(": ")[0] for line in said]
    assert places == [f"pipeline.yaml:{line}:3" for line in (4, 5, 7, 8, 9, 10)]
    needs_both = (
        "(push.sagemaker): a shadow needs both a package and its share of the requests (set `inputs: "
    )
    assert all(needs_both in line for line in said[:2])
    assert "`golden` is a function and a folder of raw files: one is missing" in said[2]
    assert "`data` needs `max_drop` (set both, or neither)" in said[3]
    assert "one of `repository` and `context` is needed" in said[4]
    assert "nothing says where the repository lies" in said[5]


GOOD = {
    "region": "eu-west-1",
    "bucket": "models.of-us",
    "role_arn": ROLE,
    "image_uri": ECR.format("eu-west-1"),
}


def test_a_good_target_lacks_nothing() -> None:
    assert wrong("push.sagemaker", GOOD) == {}
    assert wrong("push.sagemaker", {}, GOOD, AWS_DEFAULT_REGION="eu-west-1") == {}
    assert wrong("push.s3", {"bucket": "b-1"}, AWS_REGION="eu-west-1") == {}
    assert wrong("push.transform", {**GOOD, "image_uri": "registry.example.com/mine:1"}) == {}


@pytest.mark.parametrize(
    ("file", "text", "environ", "missing"),
    [
        ("config", "[default]\nregion = eu-west-1\n", {}, []),
        ("config", "[default]\noutput = json\n", {}, ["aws.region"]),
        ("config", "[profile other]\nregion=eu-west-1\n", {"AWS_PROFILE": "other"}, []),
        ("config", "[profile other]\nregion=eu-west-1\n", {}, ["aws.region"]),
        ("credentials", "[other]\nregion=eu-west-1\n", {"AWS_PROFILE": "other"}, []),
        ("config", "no section\n", {}, []),
    ],
)
def test_a_region_in_the_users_files_counts(
    tmp_path: Path, file: str, text: str, environ: dict[str, str], missing: list[str]
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / file).write_text(text)
    assert list(wrong("push.s3", {"bucket": "b-1"}, None, HOME=str(tmp_path), **environ)) == missing


@pytest.mark.parametrize(
    ("params", "said"),
    [
        *(
            ({"bucket": bucket}, "is not a valid name of an S3 bucket")
            for bucket in ("Models", "b", "a..b", "-ab", "192.168.1.1", "under_score", "xn--b", "s3://b/p", "b" * 64)
        ),
        *(({"prefix": prefix}, "neither begins nor ends with `/`") for prefix in ("/models", "models/", "a//b", "")),
        ({"environment": {"1A": "x"}}, "'1A' is not the name of a variable"),
        ({"environment": {"A-B": "x"}}, "'A-B' is not the name of a variable"),
        ({"environment": {"A": "x" * 1025}}, "at most 1024 characters, not 1025"),
        ({"environment": {f"A{n}": "" for n in range(99)}}, "at most 98 items"),
        ({"role_arn": "role/r"}, "'role/r' is not the ARN of a role"),
        ({"image_uri": "my image"}, "is not the name of an image"),
    ],
)  # fmt: skip
def test_a_parameter_that_aws_refuses_is_refused(params: dict[str, Any], said: str) -> None:
    for uses, own in (("push.sagemaker", "endpoint"), ("push.transform", "job")):
        with pytest.raises(ValidationError, match=said):
            stage(uses).Params.model_validate({own: "e", **params})


@pytest.mark.slow
def test_a_parameter_that_is_a_secret_is_judged_once_its_value_is_known(project: Project) -> None:
    project.pipeline(
        """
        endpoint: {uses: push.sagemaker, inputs: {package: in.txt},
                   with: {endpoint: e, bucket: "${{ secrets.BUCKET }}", environment: {A: "${{ secrets.BUCKET }}"}}}
        """,
        head=f"target: {{live: true, aws: {{region: eu-west-1, image_uri: i, role_arn: '{ROLE}'}}}}\n",
    )
    project.cli("validate")
    failed = project.run(exits=1, BUCKET="Not-A-Bucket")["stages"]["endpoint"]["error"]
    assert "`with` is invalid: bucket: Value error, " in failed
    assert "is not a valid name of an S3 bucket" in failed
    assert "Not-A-Bucket" not in failed
