"""push.oci against the local registry, and against the reference registry in the slow suite."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from deploy_runner.errors import ConflictError, StageError
from deploy_runner.local.oci import LocalRegistry
from deploy_runner.stages.push.registry import login, modelpack
from deploy_runner.testing import run_stage
from tests import registry
from tests.bundles import stage
from tests.conftest import Project
from tests.faults.proxy import Fault, FaultProxy
from tests.registry import calls, folder_of, push

ACCEPT = {"Accept": modelpack.MANIFEST}


@pytest.fixture(params=["local", pytest.param("reference", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of an empty registry."""
    if request.param == "local":
        with LocalRegistry(tmp_path / "registry") as running:
            yield running.url.removeprefix("http://")
    else:
        with registry.reference(request.getfixturevalue("program"), tmp_path / "registry") as place:
            yield place


def get(host: str, path: str) -> requests.Response:
    return requests.get(f"http://{host}/v2/models/digits/{path}", headers=ACCEPT, timeout=30)


def tagged(host: str, tag: str = "latest") -> str:
    return hashlib.sha256(get(host, f"manifests/{tag}").content).hexdigest()


def test_each_file_is_a_layer_and_the_tag_is_moved_last(tmp_path: Path, host: str) -> None:
    made = push(tmp_path, host, folder_of(tmp_path, "one"))
    digest = str(made.figures["digest"])
    assert tagged(host) == digest
    manifest = get(host, f"manifests/sha256:{digest}").json()
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    layers = {row["annotations"]["org.cncf.model.filepath"]: row for row in manifest["layers"]}
    assert {path: row["mediaType"].split(".model.")[1] for path, row in layers.items()} == {
        "README.md": "doc.v1.raw", "io/io.json": "weight.config.v1.raw", "model.onnx": "weight.v1.raw",
    }  # fmt: skip
    assert get(host, f"blobs/{layers['model.onnx']['digest']}").content == b"one"
    assert [(row["call"], row.get("tag")) for row in calls(made)] == [
        *[("PutBlob", None)] * 4, ("PutManifest", f"latest-{digest[:12]}"), ("PutManifest", "latest"),
    ]  # fmt: skip
    again = push(tmp_path, host, tmp_path / "artifact-one")
    assert again.context.converged
    assert calls(again) == []
    assert again.figures["digest"] == digest


def test_the_config_is_what_the_specification_says(tmp_path: Path, host: str) -> None:
    package = tmp_path / "model.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        archive.add(folder_of(tmp_path, "one") / "model.onnx", "model.onnx")
    made = push(tmp_path, host, package, name="digits.tar.gz", licenses=["Apache-2.0"])
    manifest = get(host, f"manifests/sha256:{made.figures['digest']}").json()
    config = get(host, f"blobs/{manifest['config']['digest']}").json()
    text = {"type": "string"}
    row = {"type": "object", "additionalProperties": False}
    jsonschema.validate(config, {  # The parts of modelpack/model-spec's config-schema.json that are written.
        **row, "required": ["descriptor", "config", "modelfs"],
        "properties": {
            "descriptor": {**row, "properties": {"name": text, "licenses": {"type": "array", "items": text}}},
            "config": {**row, "properties": {"format": text}},
            "modelfs": {**row, "required": ["type", "diffIds"], "properties": {
                "type": {"enum": ["layers"]}, "diffIds": {"type": "array", "minItems": 1, "items": text}}},
        },
    })  # fmt: skip
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.model.weight.v1.tar+gzip"
    unpacked = subprocess.run(["gzip", "-dc", package], capture_output=True, check=True).stdout
    assert config["modelfs"]["diffIds"] == [f"sha256:{hashlib.sha256(unpacked).hexdigest()}"]


def test_a_rollback_moves_the_tag_alone(tmp_path: Path, host: str) -> None:
    one, two, three = (
        str(push(tmp_path, host, folder_of(tmp_path, text)).figures["digest"])
        for text in ("one", "two", "three")
    )
    pushing = stage("push.oci")()
    last = push(tmp_path, host, tmp_path / "artifact-three").context
    params = pushing.Params.model_validate({"repository": "models/digits"})
    assert pushing.rollback(last, params, "") == f"latest names {two[:12]} instead of {three[:12]}"
    assert (tagged(host), tagged(host, "latest-previous")) == (two, three)
    pushing.rollback(last, params, one[:8])
    assert tagged(host) == one
    with pytest.raises(StageError, match="no release begins with 0000"):
        pushing.rollback(last, params, "0000")
    found = pushing.status(
        last, params, pushing.Inputs.model_validate({"artifact": tmp_path / "artifact-three"})
    )
    assert [(f.what, f.wanted == f.found) for f in found] == [("blobs", True), ("tag", False)]


def test_a_tag_of_something_else_is_a_conflict(tmp_path: Path, host: str) -> None:
    push(tmp_path, host, folder_of(tmp_path, "one"))
    image = get(host, "manifests/latest").json()
    del image["artifactType"]
    url = f"http://{host}/v2/models/digits/manifests/latest"
    requests.put(url, json.dumps(image), headers={"Content-Type": modelpack.MANIFEST}, timeout=30)
    before = tagged(host)
    with pytest.raises(ConflictError, match="latest names something other than a model"):
        push(tmp_path, host, folder_of(tmp_path, "two"))
    assert tagged(host) == before


def test_a_tag_that_is_moved_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    with LocalRegistry(tmp_path / "registry") as local:
        host = local.url.removeprefix("http://")
        push(tmp_path, host, folder_of(tmp_path, "one"))
        rival: list[str] = []

        def interfere(moment: str, request: Any) -> None:
            if request.method == "PUT" and "/manifests/latest-" in request.path and not rival:
                rival.append("")
                rival[0] = str(push(tmp_path, host, folder_of(tmp_path, "rival")).figures["digest"])

        with (
            FaultProxy(local.url, observe=interfere) as proxy,
            pytest.raises(ConflictError, match="was moved to .* by another push"),
        ):
            push(tmp_path, proxy.url.removeprefix("http://"), folder_of(tmp_path, "two"))
        assert [tagged(host)] == rival


FAULTS: list[dict[str, Any]] = [
    {"kind": 503}, {"kind": 429, "headers": (("Retry-After", "0"),)}, {"kind": "reset"},
    {"kind": "partial"}, {"kind": "commit_then_reset"}, {"kind": "truncated"},
]  # fmt: skip
REQUESTS = {
    "head": ("HEAD", "/blobs/sha256"), "begin": ("POST", "/blobs/uploads/"),
    "put": ("PUT", "/blobs/uploads/"), "read": ("GET", "/blobs/sha256"), "own": ("PUT", "/manifests/latest-"),
    "tag": ("PUT", "/manifests/latest$"), "manifest": ("GET", "/manifests/latest$"),
}  # fmt: skip


@pytest.mark.parametrize("faults", [FAULTS[4:5], pytest.param(FAULTS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("asked", REQUESTS)
def test_what_the_network_does_leaves_one_release(
    tmp_path: Path, asked: str, faults: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    artifact = folder_of(tmp_path, "one")
    (artifact / "model.onnx").write_bytes(bytes(range(256)) * 4096)
    method, path = REQUESTS[asked]
    for number, kind in enumerate(faults):
        with LocalRegistry(tmp_path / f"registry-{number}") as local, FaultProxy(local.url) as proxy:
            proxy.disturb([Fault(method=method, path=path, **kind)])
            made = push(tmp_path, proxy.url.removeprefix("http://"), artifact)
            assert proxy.injected == [kind["kind"]]
            host = local.url.removeprefix("http://")
            assert tagged(host) == made.figures["digest"]
            assert get(host, "tags/list").json()["tags"] == [
                "latest",
                f"latest-{made.figures['digest'][:12]}",
            ]


@pytest.mark.slow
def test_the_local_registry_answers_as_the_reference_does(tmp_path: Path, program: Path) -> None:
    with (
        LocalRegistry(tmp_path / "local") as local,
        registry.reference(program, tmp_path / "reference") as reference,
    ):
        one, other = exchange(local.url), exchange(f"http://{reference}")
    for (asked, found), (_, wanted) in zip(one, other, strict=True):
        assert found == wanted, asked


def exchange(url: str) -> list[tuple[str, Any]]:
    """Send every request that push.oci sends, right and wrong ones, and return what matters of the answers."""
    found = []

    def ask(method: str, path: str, data: bytes = b"", **headers: str) -> requests.Response:
        whole = path if path.startswith("http") else f"{url}/v2/models/digits/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = requests.request(method, whole, data=data, headers=named, timeout=30)
        shown: dict[str, Any] = {
            n: answer.headers.get(n) for n in ("Range", "Docker-Content-Digest", "Content-Type")
        }
        if answer.status_code < 300 and method in ("GET", "HEAD") and "/blobs/sha256" in whole:
            shown["Content-Length"] = answer.headers["Content-Length"]
        shown["located"] = bool(answer.headers.get("Location"))
        try:
            said = answer.json()
            said = [row["code"] for row in said["errors"]] if "errors" in said else said
        except ValueError:
            said = answer.content
        found.append((f"{method} {path}", (answer.status_code, shown, said)))
        return answer

    def digest(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def upload(data: bytes, name: str) -> None:
        place = ask("POST", "blobs/uploads/").headers["Location"]
        whole = f"{place}{'&' if '?' in place else '?'}digest={name}"
        for _ in range(2):  # The first answer was lost.
            ask("PUT", whole, data, Content_Type="application/octet-stream")

    layer, config = b"weights", b"{}"
    ask("GET", "tags/list")
    ask("HEAD", f"blobs/{digest(layer)}")
    ask("GET", f"blobs/{digest(layer)}")
    ask("GET", "manifests/latest", Accept=modelpack.MANIFEST)
    upload(layer, digest(layer))
    upload(layer, digest(b"other"))
    row = {"mediaType": modelpack.MANIFEST, "schemaVersion": 2, "artifactType": modelpack.ARTIFACT}
    row["config"] = {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": digest(config),
        "size": 2,
    }
    row["layers"] = [
        {"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest(layer), "size": 7}
    ]
    manifest = json.dumps(row).encode()
    ask("PUT", "manifests/latest", manifest, Content_Type=modelpack.MANIFEST)  # Before its blobs.
    upload(config, digest(config))
    upload(b"", digest(b""))
    ask("PUT", f"manifests/{digest(b'other')}", manifest, Content_Type=modelpack.MANIFEST)
    ask("PUT", "manifests/latest", b"{", Content_Type=modelpack.MANIFEST)
    for _ in range(2):
        ask("PUT", "manifests/latest", manifest, Content_Type=modelpack.MANIFEST)
    for reference in ("latest", digest(manifest), digest(b"other")):
        ask("GET", f"manifests/{reference}", Accept=modelpack.MANIFEST)
        ask("HEAD", f"manifests/{reference}", Accept=modelpack.MANIFEST)
    ask("GET", "manifests/latest")
    ask("HEAD", f"blobs/{digest(layer)}")
    ask("GET", f"blobs/{digest(layer)}")
    ask("GET", "tags/list?n=1000")
    return found


@pytest.mark.slow
def test_oras_pulls_what_was_pushed(tmp_path: Path, program: Path) -> None:
    """By its Python client, in a folder of its own."""
    wheels = tmp_path / "oras"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(wheels), "oras==0.2.43"]
    subprocess.run(pip, check=True, capture_output=True)
    with registry.reference(program, tmp_path / "registry") as host:
        made = push(tmp_path, host, folder_of(tmp_path, "one"))
        code = (
            "import sys; from oras.client import OrasClient; "
            "OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])"
        )
        target = f"{host}/models/digits@sha256:{made.figures['digest']}"
        done = subprocess.run(
            [sys.executable, "-c", code, target, str(tmp_path / "pulled")],
            env={"PYTHONPATH": str(wheels), "HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    pulled = {p.relative_to(tmp_path / "pulled").as_posix(): p.read_bytes()
              for p in (tmp_path / "pulled").rglob("*") if p.is_file()}  # fmt: skip
    source = tmp_path / "artifact-one"
    assert pulled == {
        p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    ("params", "target", "said"),
    [
        ({}, {}, "registry is not set"),
        ({"registry": "https://ghcr.io"}, {}, "is no HOST or HOST:PORT"),
        ({"username": "me"}, {"oci": {"registry": "ghcr.io"}}, "username and password belong together"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_asked(
    tmp_path: Path, params: dict[str, Any], target: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        run_stage(
            stage("push.oci"), tmp_path / "run", inputs={"artifact": folder_of(tmp_path, "one")},
            params={"repository": "models/digits", **params}, target=target,
        )  # fmt: skip


@pytest.mark.slow
def test_a_dry_run_and_a_live_run_from_the_command_line(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.write("model.onnx", "weights")
    project.pipeline(
        "oci: {uses: push.oci, inputs: {artifact: model.onnx}, with: {repository: models/digits}}"
    )
    project.write("dry-run.yaml", "target: {name: dry-run, oci: {registry: registry.example.com}}")
    assert project.states("--config", "dry-run.yaml") == {"oci": "ran"}
    transcript = json.loads(project.output("oci.transcript", "--config", "dry-run.yaml"))
    assert [row["call"] for row in transcript["calls"]] == [
        "PutBlob",
        "PutBlob",
        "PutManifest",
        "PutManifest",
    ]
    with LocalRegistry(tmp_path / "registry") as local:
        host = local.url.removeprefix("http://")
        auth = {"auths": {host: {"auth": login.Login(host, "me", "pw")._basic()}}}
        project.write("home/.docker/config.json", json.dumps(auth))
        home = str(project.folder / "home")
        project.write("live.yaml", f"target: {{name: production, live: true, oci: {{registry: '{host}'}}}}")
        live = ("--config", "live.yaml")
        assert project.states(*live, HOME=home) == {"oci": "ran"}
        assert project.states(*live, HOME=home, OCI_REGISTRY="127.0.0.1:1") == {"oci": "converged"}
        said = project.cli("doctor", *live, HOME=home, exits=None).stdout
        assert f"a login for {host} was found in" in said
        project.write("model.onnx", "other weights")
        assert "missing" in project.cli("status", *live, HOME=home, exits=1).stdout
        project.run(*live, HOME=home)
        assert "instead of" in project.cli("rollback", "oci", *live, HOME=home).stdout
