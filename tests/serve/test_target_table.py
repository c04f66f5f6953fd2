"""docs/targets.md: what holds for each target, found by running all of them on a net of timm's."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy as np
import onnxruntime
import pytest
import requests
import timm
import torch
from botocore.exceptions import ClientError

from deploy_runner.local.hub import LocalHub
from deploy_runner.local.oci import LocalRegistry
from tests.aws import local_aws
from tests.conftest import ROOT, Project
from tests.pipeline import hub as hubs
from tests.serve import containers, ray_serve, toolkit, triton
from tests.serve.server import Server, serving

PAGE = ROOT / "docs/targets.md"
HEAD = """\
# Targets

What holds for each target. This page is written by a run (`make targets`) that ships a net of timm's, `resnet10t`, to all
of them, asks each with pictures and with requests that are wrong, pushes a second version, and rolls back. AWS, the Hub
and the registries are the local servers of a dry run; what answers is the real thing: SageMaker's own toolkit, Ray Serve,
Triton, the container's entry point. `package.kserve` and `push.mlflow` are tested by themselves: [other
targets](other-targets.md).

- **starts**: its own software loads what was made
- **answers**: every number is within 1e-4 of the net in PyTorch
- **refuses**: JSON that breaks off, a shape that doesn't fit, words for numbers, an unknown content type: 4xx each
- **rolled back**: `rollback` brings the first version's answers back
- **planned**: `plan` says what would change before a run, and that nothing would after it

| target | starts | answers | refuses | rolled back | planned |
|---|---|---|---|---|---|
"""
LIVE = ("--config", "live.yaml")
TARGET = """\
target:
  name: live
  live: true
  aws: {{region: us-east-1, bucket: models, create_bucket: true, image_uri: "image:1",
        role_arn: "arn:aws:iam::123456789012:role/r"}}
  oci: {{registry: "{host}"}}
"""
SIZE = (2, 3, 32, 32)
JSON = "application/json"
WRONG = [
    (b'{"inputs": [[1.0', JSON),
    (json.dumps({"inputs": [[1.0, 2.0]]}).encode(), JSON),
    (json.dumps({"inputs": "a picture"}).encode(), JSON),
    (b"\x00\x01", "application/x-unknown"),
]
MODEL, ONNX = "${{ stages.model.outputs.model }}", "${{ stages.onnx.outputs.model }}"
PACKAGE = "${{ stages.package.outputs.%s }}"
PACKED = {"model": ONNX, "reference": MODEL}
STAGES = {
    "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "model.pt"}},
    "model": {
        "uses": "model.prepare", "inputs": {"weights": "${{ stages.weights.outputs.weights }}"},
        "with": {
            "factory": "timm:create_model", "kwargs": {"model_name": "resnet10t", "num_classes": 5},
            "example": {"shape": list(SIZE)},
        },
    },
    "onnx": {"uses": "onnx.export", "inputs": {"model": MODEL}},
    "container": {"uses": "package.container", "inputs": PACKED},
    "flask": {"uses": "package.container", "inputs": PACKED, "with": {"server": "flask"}},
    "package": {"uses": "package.sagemaker", "inputs": PACKED},
    "triton": {"uses": "package.triton", "inputs": PACKED},
    "endpoint": {
        "uses": "push.sagemaker", "with": {"endpoint": "e"},
        "inputs": {"package": PACKAGE % "package", "smoke": PACKAGE % "smoke"},
    },
    "image": {
        "uses": "push.sagemaker", "with": {"endpoint": "image", "image_uri": "${{ vars.image }}"},
        "inputs": {
            "context": "${{ stages.container.outputs.context }}",
            "smoke": "${{ stages.container.outputs.smoke }}",
        },
    },
    "bucket": {
        "uses": "push.s3", "with": {"prefix": "nets", "name": "model.tar.gz"},
        "inputs": {"artifact": PACKAGE % "package"},
    },
    "hub": {
        "uses": "push.hub", "with": {"repo": "local/net", "license": "apache-2.0"},
        "inputs": {"models": {"fp32": ONNX}, "reference": MODEL},
    },
    "registry": {
        "uses": "push.oci", "with": {"repository": "nets/net"}, "inputs": {"artifact": ONNX},
    },
    "transform": {
        "uses": "push.transform", "with": {"job": "j"},
        "inputs": {"package": PACKAGE % "package", "data": "requests/"},
    },
}  # fmt: skip
IMAGES = [f"123456789012.dkr.ecr.us-east-1.amazonaws.com/net@sha256:{letter * 64}" for letter in "ab"]
POINTERS = ("endpoint", "image", "bucket", "hub", "registry")
"""The pushes whose remote names a release, which a rollback moves back."""
PUSHES = (*POINTERS, "transform")
Ask = Callable[[bytes, str], tuple[int, Any]]


class Row(NamedTuple):
    """What holds for a target; None where the property has no meaning."""

    target: str
    starts: bool
    answers: bool
    refuses: bool | None = None
    rolled_back: bool | None = None
    planned: bool | None = None

    def __str__(self) -> str:
        words = {True: "yes", False: "no", None: ""}
        return f"| {self.target} | {' | '.join(words[cell] for cell in self[1:])} |"


def pictures() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=SIZE).astype("f4")


def trained(project: Project, seed: int) -> np.ndarray[Any, Any]:
    """Save a net's checkpoint; return its answers to the pictures."""
    torch.manual_seed(seed)
    net = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(net.state_dict(), project.folder / "model.pt")
    with torch.no_grad():
        answers: np.ndarray[Any, Any] = net(torch.from_numpy(pictures())).numpy()
    return answers


def near(found: Any, expected: np.ndarray[Any, Any]) -> bool:
    return bool(np.allclose(np.asarray(found, "f4"), expected, atol=1e-4))


def asked(target: str, ask: Ask, expected: np.ndarray[Any, Any]) -> Row:
    status, answer = ask(json.dumps({"inputs": pictures().tolist()}).encode(), JSON)
    refused = [ask(*wrong)[0] for wrong in WRONG]
    right = status == 200 and near(next(iter(answer["outputs"].values())), expected)
    return Row(target, True, right, all(400 <= code < 500 for code in refused))


def over_http(server: Server, path: str) -> Ask:
    def ask(body: bytes, kind: str) -> tuple[int, Any]:
        answer = server.ask("POST", path, raw=body, headers={"Content-Type": kind})
        return answer.status, answer.json

    return ask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, np.ndarray[Any, Any]]]:
    """A project whose packages are made, in the reach of a local AWS and a local Hub."""
    folder = tmp_path_factory.mktemp("targets")
    project = Project(folder / "project")
    project.write(
        "pipeline.yaml",
        json.dumps({"version": 1, "name": "net", "vars": {"image": IMAGES[0]}, "stages": STAGES}),
    )
    project.write("requests/two.json", json.dumps({"inputs": pictures().tolist()}))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        hub = stack.enter_context(LocalHub(folder / "hub"))
        registry = stack.enter_context(LocalRegistry(folder / "registry"))
        host = registry.url.removeprefix("http://")
        patch.setenv("OCI_REGISTRY", host)
        project.write("live.yaml", TARGET.format(host=host))
        hubs.use(hub, patch)
        images = {}
        for version in (2, 1):
            expected = trained(project, version)
            project.cli("run", "container", *LIVE)
            place = folder / f"image{version}"
            images[IMAGES[version - 1]] = taken(project, "container.context", place)
        url = stack.enter_context(local_aws(folder / "aws", patch, images))
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        project.env |= {
            "AWS_ENDPOINT_URL": url,
            **keys,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_dry_run",
            "HF_HUB_DISABLE_XET": "1",
        }
        project.cli("run", "container", "flask", "package", "triton", *LIVE)
        yield project, expected


def taken(project: Project, output: str, place: Path | None = None) -> Path:
    place = place or project.folder / "taken" / output
    project.cli("get", output, "--to", str(place), *LIVE)
    return place


def servers(project: Project, folder: Path, python: Path, expected: np.ndarray[Any, Any]) -> Iterator[Row]:
    """Start everything that answers requests, and ask it."""
    reference = ("--reference", "model.model")
    for kind in ("fastapi", "flask"):
        with serving(
            "onnx", *reference, "--server", kind, folder=folder / kind, cwd=project.folder
        ) as server:
            yield asked(f"`serve --server {kind}`", over_http(server, "/predict"), expected)
    for name, server_kind in (("container", "FastAPI"), ("flask", "Flask")):
        context = taken(project, f"{name}.context")
        with containers.started(context, folder / f"{name}-image") as server:
            yield asked(f"`package.container`, {server_kind}", over_http(server, "/predict"), expected)
        sagemaker = {"SAGEMAKER_BIND_TO_PORT": "0"}
        with containers.started(context, folder / f"{name}-sagemaker", "serve", env=sagemaker) as server:
            assert server.ask("GET", "/ping").status == 200
            ask = over_http(server, "/invocations")
            yield asked(f"`package.container`, {server_kind}, as SageMaker starts it", ask, expected)
    package = taken(project, "package.package")
    with toolkit.toolkit(package, folder / "toolkit") as loaded:
        yield asked("`package.sagemaker`, SageMaker's PyTorch toolkit", loaded.ask, expected)
    (folder / "ray").mkdir()
    with ray_serve.ray_serve(python, {"/": package}, folder / "ray") as ray:
        ray.wait()

        def ask_ray(body: bytes, kind: str) -> tuple[int, Any]:
            status, answer, _ = ray.ask(body, kind)
            return status, json.loads(answer) if status == 200 else answer

        yield asked("`package.sagemaker`, SageMaker's Ray Serve", ask_ray, expected)


def by_triton(project: Project, folder: Path, expected: np.ndarray[Any, Any]) -> Row:
    with triton.serving(taken(project, "triton.repository"), triton.install(folder / "w"), folder) as server:
        found = server.infer("model", {"x": pictures()})
        refused = bool(server.refusal("model", {"x": pictures()[:, :, :5].astype("f8")}))
        return Row("`package.triton`, Triton", True, near(next(iter(found.values())), expected), refused)


def at(endpoint: str) -> Ask:
    def ask(body: bytes, kind: str) -> tuple[int, Any]:
        runtime = boto3.client("sagemaker-runtime", region_name="us-east-1")
        try:
            given = runtime.invoke_endpoint(EndpointName=endpoint, Body=body, ContentType=kind)
        except ClientError as error:
            return int(error.response["OriginalStatusCode"]), None
        return 200, json.loads(given["Body"].read())

    return ask


def of_file(path: Path) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pictures()})[0]


def in_bucket(folder: Path) -> Any:
    s3 = boto3.client("s3", region_name="us-east-1")
    pointer = json.loads(s3.get_object(Bucket="models", Key="nets/latest.json")["Body"].read())
    s3.download_file("models", f"nets/{pointer['digest']}/model.tar.gz", str(folder / "model.tar.gz"))
    with tarfile.open(folder / "model.tar.gz") as archive:
        archive.extractall(folder / "bucket", filter="data")
    return of_file(folder / "bucket/model.onnx")


def on_hub(folder: Path) -> Any:
    from huggingface_hub import hf_hub_download

    return of_file(
        Path(
            hf_hub_download(
                "local/net", "onnx/model.onnx", cache_dir=folder / "hub", endpoint=os.environ["HF_ENDPOINT"]
            )
        )
    )


def in_registry(folder: Path) -> Any:
    place = f"http://{os.environ['OCI_REGISTRY']}/v2/nets/net"
    kind = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    manifest = requests.get(f"{place}/manifests/latest", headers=kind, timeout=30).json()
    names = {layer["annotations"]["org.cncf.model.filepath"]: layer["digest"] for layer in manifest["layers"]}
    (folder / "registry.onnx").write_bytes(
        requests.get(f"{place}/blobs/{names['model.onnx']}", timeout=30).content
    )
    return of_file(folder / "registry.onnx")


ENDPOINTS = {"endpoint": "e", "image": "image"}
READ = {"bucket": in_bucket, "hub": on_hub, "registry": in_registry}


def serving_is(folder: Path, expected: np.ndarray[Any, Any]) -> dict[str, bool]:
    """Say of each pointer whether what it names answers so."""
    found = {name: near(read(folder), expected) for name, read in READ.items()}
    served = {name: asked("", at(of), expected).answers for name, of in ENDPOINTS.items()}
    return {**served, **found}


def transformed(project: Project) -> Any:
    answers = taken(project, "transform.answers")
    (value,) = json.loads((answers / "two.json.out").read_text())["outputs"].values()
    return value


def pushed(project: Project, folder: Path, first: np.ndarray[Any, Any]) -> Iterator[Row]:
    """Plan, push, push another version, go back."""
    new = (*LIVE, "--set", f"vars.image={IMAGES[1]}")
    before = project.cli("plan", *LIVE).stdout
    project.cli("run", *LIVE)
    after = project.cli("plan", *LIVE).stdout
    planned = (
        all(f"{name}" in before for name in PUSHES) and "wanted" in before and "the remote matches" in after
    )
    refuses = {name: asked("", at(of), first).refuses for name, of in ENDPOINTS.items()}
    started = {**serving_is(folder, first), "transform": near(transformed(project), first)}
    second = trained(project, 2)
    project.cli("run", *new)
    moved = serving_is(folder, second)
    for name in POINTERS:
        project.cli("rollback", name, *new)
    back = {name: moved[name] and right for name, right in serving_is(folder, first).items()}
    for name in PUSHES:
        target = f"`{STAGES[name]['uses']}`{', an image alone' if name == 'image' else ''}"
        yield Row(target, started[name], started[name], refuses.get(name), back.get(name), planned)


@pytest.mark.slow
def test_the_page_has_what_a_run_finds(
    made: tuple[Project, np.ndarray[Any, Any]],
    ray_python: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    project, expected = made
    rows = [
        *servers(project, tmp_path, ray_python, expected),
        by_triton(project, tmp_path / "triton", expected),
    ]
    rows += pushed(project, tmp_path, expected)
    text = HEAD + "".join(f"{row}\n" for row in rows)
    if request.config.getoption("--write-targets"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "make targets"
    assert " no " not in text
