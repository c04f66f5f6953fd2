"""The first hour of somebody who classifies pictures: to SageMaker, and into a container."""

from __future__ import annotations

import json
import socket
import tarfile
import urllib.request
from pathlib import Path

import boto3
import pytest
import yaml

from deploy_runner.local.servers import dry_run
from tests.first_hour.newcomer import Newcomer, install
from tests.first_hour.pages import HOUR, commands, fragments, section
from tests.first_hour.people import PICTURES, trained

pytestmark = pytest.mark.slow

PART = section(HOUR.read_text(), "Pictures: SageMaker, and a container")
INIT, RUN, GET, DOCTOR, PLAN, LIVE, STATUS, IMAGE, GET_IMAGE, *DOCKER = commands(PART)
PRODUCTION, CONTAINER = fragments(PART)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Newcomer:
    """One person, who goes from test to test, as the hour passes."""
    made = Newcomer(tmp_path_factory.mktemp("pictures") / "digits", programs)
    trained(made.folder, "train.py", PICTURES)
    return made


def test_the_hour(person: Newcomer, tmp_path: Path, used_port: int) -> None:
    _begins(person)
    _mistypes(person)
    _deploys(person, tmp_path)
    _packs_a_container(person, used_port)
    _moves_the_folder(person, tmp_path)


def _begins(person: Newcomer) -> None:
    """Nothing is there yet, paths and goals are misspelt, the training's own packages are missing."""
    assert "write one with `deploy-runner init CHECKPOINT`" in person.errs(RUN)
    assert "did you mean 'checkpoints/best.pt'?" in person.errs("deploy-runner init checkpoint/best.pt")
    assert "'sagemaker'" in person.errs("deploy-runner init checkpoints/best.pt --goal sagemake")
    assert "deploy-runner init CHECKPOINT --factory train.py:Classifier" in person.errs(
        "deploy-runner init train.py"
    )
    if "scikit_learn" not in str(list(person.programs.parent.glob("lib/python*/site-packages/*"))):
        assert person.errs(INIT).endswith("is not installed (pip install scikit-learn)")
        install(person.programs, "scikit-learn")
    said = person.types(INIT)
    assert "built by train.py:Classifier: its weights fit exactly" in said
    assert "now: deploy-runner run pipeline.yaml" in said
    assert "pipeline.yaml already exists" in person.errs(INIT)
    printed = person.interrupts(RUN, "✓ weights")
    assert "run again to continue" in printed
    assert "= weights" in person.types(RUN)  # It continues.
    assert "7 stages: 7 hit" in person.types(RUN)


def _mistypes(person: Newcomer) -> None:
    """Stages and files are misspelt, the file is indented wrongly."""
    assert "did you mean 'onnx'?" in person.errs(f"{RUN} onxn")
    assert "did you mean 'pipeline.yaml'?" in person.errs(f"{RUN} pipelin.yaml")
    assert "did you mean 'configs/production.yaml'?" in person.errs(f"{RUN} --config configs/prodution.yaml")
    assert "several outputs" in person.errs("deploy-runner get package")
    file = person.folder / "pipeline.yaml"
    right = file.read_text()
    file.write_text(right.replace("    with: {endpoint:", "   with: {endpoint:"))
    assert "indent the line exactly like the others" in person.errs(RUN)
    file.write_text(right.replace("    with: {endpoint:", "\twith: {endpoint:"))
    assert "indent with spaces" in person.errs(RUN)
    file.write_text(right.replace("uses: onnx.export", "uses: onnx.exprot"))
    assert "did you mean 'onnx.export'?" in person.errs(RUN)
    file.write_text(right)
    assert "model.tar.gz" in person.types(GET)
    assert "already exists" in person.errs(GET)
    with tarfile.open(person.folder / "model.tar.gz") as archive:
        assert "code/inference.py" in archive.getnames()


def _deploys(person: Newcomer, tmp_path: Path) -> None:
    """The target is not filled in, then has no region, then no credentials; then all is there."""
    said = person.errs(LIVE)
    for name in ("region", "bucket", "role_arn", "image_uri"):
        assert f"{name}: …" in said
    assert "use a live target" in person.errs("deploy-runner status")
    config = person.folder / "configs/production.yaml"
    config.write_text("\n".join(line for line in PRODUCTION.splitlines() if "region:" not in line))
    assert "doesn't set target.aws.region" in person.errs(LIVE)
    config.write_text(PRODUCTION)
    assert person.errs(LIVE, exits=1).endswith("(export AWS_PROFILE=…, or use OIDC in CI)")
    with dry_run(tmp_path / "aws", services=("aws",), log=lambda line: None) as env:
        target = yaml.safe_load(PRODUCTION)["target"]["aws"]
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": target["region"]}
        where = {"LocationConstraint": target["region"]}
        s3 = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], **keys)
        assert "your-models" in person.errs(LIVE, exits=1, **env)  # There is no such bucket yet.
        s3.create_bucket(Bucket=target["bucket"], CreateBucketConfiguration=where)
        assert "FAIL" not in person.types(DOCTOR, **env)
        assert "endpoint" in person.types(PLAN, **env)
        assert "1 ran" in person.types(LIVE, **env)
        assert "1 converged" in person.types(LIVE, **env)
        assert "digits" in person.types(STATUS, **env)


def _packs_a_container(person: Newcomer, used_port: int) -> None:
    """The stage of the page is added, and what it wrote is served: a port is in use, a stage no model."""
    file = person.folder / "pipeline.yaml"
    file.write_text(file.read_text() + "\n" + CONTAINER)
    person.types(IMAGE)
    person.types(GET_IMAGE)
    assert DOCKER[0] == "docker build -t digits image"
    assert DOCKER[1] == "docker run --rm -p 8080:8080 digits"
    assert "EXPOSE 8080" in (person.folder / "image/Dockerfile").read_text()
    assert "is not a model" in person.errs("deploy-runner serve endpoint")
    assert "is not a model" in person.errs("deploy-runner serve weights.weights")
    assert "nomodel" in person.errs("deploy-runner serve onnx --reference nomodel")
    serve = "deploy-runner serve ./image"
    assert serve in PART
    assert f"127.0.0.1:{used_port}" in person._run(f"{serve} --port {used_port}", {}).stdout
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = person._start(f"{serve} --port {port}", {})
    try:
        assert server.stdout is not None
        assert any("http://127.0.0.1" in line for line in server.stdout)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=30) as answer:
            assert "images" in json.dumps(json.load(answer))
    finally:
        server.terminate()
        server.communicate(timeout=60)


def _moves_the_folder(person: Newcomer, tmp_path: Path) -> None:
    """All is a hit in another folder, and the second run there as well."""
    person.moves(tmp_path / "renamed")
    assert "8 stages: 8 hit" in person.types(RUN)
    assert "8 stages: 8 hit" in person.types(RUN)
