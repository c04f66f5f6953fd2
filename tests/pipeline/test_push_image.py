"""push.sagemaker deploys an image alone: one that package.container's context was built to, named by its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import GateError, StageError
from deploy_runner.sdk import Context
from deploy_runner.testing import StageRun, run_stage
from tests.aws import TARGET, calls, local_aws, package, smoke
from tests.bundles import stage
from tests.conftest import Project
from tests.pipeline.endpoints import client, rolled_back, served
from tests.serve import models

ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com/digits"
TWO, THREE = (f"{ECR}@sha256:{letter * 64}" for letter in "ab")
PUSH = stage("push.sagemaker")


def deploy(folder: Path, image: str, **given: Any) -> StageRun:
    """Push an image to the endpoint `e`; `inputs` are its inputs, the rest are parameters."""
    run = folder / f"run{len(list(folder.iterdir()))}"
    inputs = given.pop("inputs", {})
    params = {"endpoint": "e", "image_uri": image, **given}
    return run_stage(PUSH, run, inputs=inputs, params=params, target=TARGET)


def drifted(folder: Path, image: str, **inputs: Path) -> dict[str, tuple[str, str]]:
    """Return what `status` finds out of sync, by name: as wanted, and as found."""
    ctx = Context(stage="push", workdir=folder, target=TARGET)
    params = PUSH.Params.model_validate({"endpoint": "e", "image_uri": image})
    found = PUSH().status(ctx, params, PUSH.Inputs.model_validate(inputs))
    return {row.what: (row.wanted, row.found) for row in found if not row.in_sync}


def ask(x: float) -> float:
    """Ask the endpoint `e`."""
    body = json.dumps({"inputs": {"x": [[x, 0, 0]]}})
    given = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="e", Body=body, ContentType="application/json"
    )
    return float(json.loads(given["Body"].read())["outputs"]["y"][0][0])


@pytest.fixture
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS that has no images."""
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch):
        yield


@pytest.mark.usefixtures("aws")
def test_an_image_is_deployed_alone_compared_moved_registered_and_taken_back(tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "model").mkdir(parents=True)
    with pytest.raises(StageError, match="`context` has no model/model.json .*package.container"):
        deploy(tmp_path, TWO, inputs={"context": context})
    (context / "model/model.json").write_text('{"device": "cuda"}')
    with pytest.raises(
        StageError, match="the image runs on a GPU, and `instance_type: ml.m5.large` has none"
    ):
        deploy(tmp_path, TWO, inputs={"context": context})
    first = deploy(tmp_path, TWO, registry={"group": "digits"})
    assert calls(first) == [
        "s3:CreateBucket", "sagemaker:CreateModelPackageGroup", "sagemaker:CreateModelPackage",
        "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig", "sagemaker:CreateEndpoint",
    ]  # fmt: skip
    assert first.figures["image_sha256"] == "a" * 64
    assert json.loads(first["transcript"].read_text())["image"] == TWO
    sagemaker = client("sagemaker")
    model = sagemaker.describe_model(ModelName=first.figures["model"])
    assert model["PrimaryContainer"] == {"Image": TWO}
    tags = sagemaker.list_tags(ResourceArn=model["ModelArn"])["Tags"]
    assert {"Key": "deploy-runner:digest", "Value": "a" * 64} in tags
    version = sagemaker.describe_model_package(ModelPackageName=first.figures["model_package"])
    assert version["InferenceSpecification"]["Containers"] == [{"Image": TWO}]
    assert calls(deploy(tmp_path, TWO, registry={"group": "digits"})) == []
    assert drifted(tmp_path, TWO) == {}
    second = deploy(tmp_path, THREE, environment={"SERVE_MAX_BATCH": "32"})
    assert calls(second)[-3:] == [
        "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig", "sagemaker:UpdateEndpoint",
    ]  # fmt: skip
    assert drifted(tmp_path, TWO)["image"] == (TWO, THREE)
    said = rolled_back(tmp_path, image_uri=THREE)
    assert "(image aaaaaaaaaaaa) instead of" in said
    assert said.endswith("; not smoke-tested: no smoke.npz of it can be read in S3")
    assert served()["ProductionVariants"][0]["ModelName"] == first.figures["model"]
    rolled_back(tmp_path, to="bbbb", image_uri=THREE)
    assert served()["ProductionVariants"][0]["ModelName"] == second.figures["model"]
    with pytest.raises(
        GateError, match="responded with 503: the local AWS doesn't have the image .*digits@sha"
    ):
        deploy(tmp_path, TWO, inputs={"smoke": smoke(tmp_path, 2)})


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, StageRun]:
    """The contexts of two images, whose models multiply by 2 and by 3."""
    folder, made = tmp_path_factory.mktemp("contexts"), {}
    for image, factor in ((TWO, 2), (THREE, 3)):
        inputs = {"model": models.scaled(folder / f"m{factor}", factor)}
        inputs["reference"] = run_stage(stage("model.onnx"), folder / f"r{factor}", inputs=inputs)["model"]
        made[image] = run_stage(stage("package.container"), folder / f"c{factor}", inputs=inputs)
    return made


@pytest.fixture
def ecr(
    contexts: Mapping[str, StageRun],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """An AWS that has both images."""
    images = {image: run["context"] for image, run in contexts.items()}
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch, images):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ecr")
def test_an_image_answers_is_tested_and_changes_places_with_a_package(
    contexts: Mapping[str, StageRun], tmp_path: Path
) -> None:
    def given(image: str, tested: str | None = None) -> dict[str, Path]:
        return {"context": contexts[image]["context"], "smoke": contexts[tested or image]["smoke"]}

    deploy(tmp_path, TWO, inputs=given(TWO))
    assert ask(10) == 20
    with pytest.raises(GateError, match="smoke test failed: the answers differ .*; rolled back: e serves"):
        deploy(tmp_path, THREE, inputs=given(THREE, TWO))
    assert ask(10) == 20
    assert deploy(tmp_path, THREE, inputs=given(THREE)).figures["smoke_samples"] > 1
    assert drifted(tmp_path, THREE, **given(THREE)) == {}
    assert ask(10) == 30
    assert rolled_back(tmp_path, image_uri=THREE).endswith("; smoke-tested")
    assert ask(10) == 20
    packed = deploy(tmp_path, TWO, inputs={"package": package(tmp_path, 4), "smoke": smoke(tmp_path, 4)})
    assert ask(10) == 40
    assert set(drifted(tmp_path, TWO, **given(TWO))) == {"package", "endpoint config"}
    said = rolled_back(tmp_path, image_uri=TWO)
    assert "(image aaaaaaaaaaaa)" in said
    assert said.endswith("; smoke-tested")
    digest = str(packed.figures["package_sha256"])
    assert f"(package {digest[:12]})" in rolled_back(tmp_path, to=digest[:8], image_uri=TWO)
    assert ask(10) == 40


COMPONENT = {"memory_mb": 1024, "min_instances": 1, "max_instances": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("ecr")
@pytest.mark.parametrize(
    "kind",
    [
        {"serverless": {"memory_mb": 2048}},
        {"asynchronous": {}},
        {"component": COMPONENT},
        {"shadow": {"percent": 100}, "capture": {}},
        {"network_isolation": True, "vpc": {"security_groups": ["sg-1"], "subnets": ["subnet-1"]}},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_an_endpoint_of_each_kind_serves_an_image(
    contexts: Mapping[str, StageRun], kind: Mapping[str, Any], tmp_path: Path
) -> None:
    inputs = {"smoke": contexts[TWO]["smoke"]} | (
        {"shadow": package(tmp_path, 5)} if "shadow" in kind else {}
    )
    first = deploy(tmp_path, TWO, inputs=inputs, **kind)
    assert first.figures["smoke_samples"] == 8
    inputs["smoke"] = contexts[THREE]["smoke"]
    deploy(tmp_path, THREE, inputs=inputs, **kind)
    assert deploy(tmp_path, THREE, inputs=inputs, **kind).context.converged
    assert rolled_back(tmp_path, image_uri=TWO, **kind).endswith("; smoke-tested")


@pytest.mark.slow
def test_a_pipeline_is_tried_without_the_image_and_deployed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project")
    models.scaled(project.folder / "m", 2)
    project.pipeline(
        """
        model: {uses: model.onnx, inputs: {model: m/model.onnx}}
        image: {uses: package.container, inputs: {model: m/model.onnx, reference: "${{ stages.model.outputs.model }}"}}
        endpoint:
          uses: push.sagemaker
          inputs: {context: "${{ stages.image.outputs.context }}", smoke: "${{ stages.image.outputs.smoke }}"}
          with: {endpoint: e, image_uri: "${{ vars.image }}"}
        """,
        head=f'vars: {{image: "{ECR}@sha256:{"0" * 64}"}}\n',
    )
    project.write(
        "live.yaml",
        """
        target:
          name: live
          live: true
          aws: {region: us-east-1, bucket: models, create_bucket: true,
                role_arn: "arn:aws:iam::123456789012:role/r"}
        """,
    )
    tried = project.run()["stages"]["endpoint"]["figures"]
    assert (tried["image_sha256"], tried["smoke_samples"]) == ("0" * 64, 8)
    assert project.states()["endpoint"] == "hit"
    project.cli("get", "image.context", "-o", "context")
    live = ("--config", "live.yaml", "--set", f"vars.image={TWO}")
    with local_aws(tmp_path / "servers", monkeypatch, {TWO: project.folder / "context"}) as url:
        project.env |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        assert "endpoint e: missing, wanted InService" in project.cli("plan", *live).stdout
        assert project.states(*live)["endpoint"] == "ran"
        assert ask(10) == 20
        assert project.states(*live)["endpoint"] == "converged"
        assert "the remote matches the pipeline" in project.cli("plan", *live).stdout


@pytest.mark.parametrize(
    ("image", "given", "said"),
    [
        (None, {}, "nothing says what is deployed .set `inputs: {package: …}`, or "),
        (f"{ECR}:latest", {}, "`image_uri` doesn't name it by its digest .*without a tag"),
        (f"{ECR}:1@sha256:{'a' * 64}", {}, "`image_uri` doesn't name it by its digest"),
        (f"{ECR}@sha256:{'A' * 64}", {}, "`image_uri` doesn't name it by its digest"),
        (f"{ECR}@sha256:abc", {}, "`image_uri` doesn't name it by its digest"),
        (f"localhost:5000/digits:1@sha256:{'a' * 64}", {}, "`image_uri` doesn't name it by its digest"),
        (TWO, {"package": "m", "context": "c"}, "`package` and `context` exclude each other"),
    ],
)
def test_what_is_deployed_has_one_name(image: str | None, given: Mapping[str, str], said: str) -> None:
    params = PUSH.Params.model_validate({"endpoint": "e"} | ({"image_uri": image} if image else {}))
    with pytest.raises(StageError, match=said):
        params.check_inputs(given)
    params.model_copy(update={"image_uri": f"localhost:5000/a/b@sha256:{'0' * 64}"}).check_inputs({"context"})
