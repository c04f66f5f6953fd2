"""push.s3 and push.transform against the local AWS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy_runner.errors import ConflictError, GateError, StageError
from deploy_runner.sdk import sha256_file
from deploy_runner.testing import StageRun, run_stage
from tests.aws import TARGET, calls, local_aws, package
from tests.bundles import stage

MIB = 1 << 20


@pytest.fixture(autouse=True)
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


def s3() -> Any:
    return boto3.client("s3", region_name="us-east-1")


def push(folder: Path, artifact: Path, **params: Any) -> StageRun:
    run = folder / f"run{len(list(folder.iterdir()))}"
    return run_stage(stage("push.s3"), run, inputs={"artifact": artifact},
                     params={"prefix": "models/digits", **params}, target=TARGET)  # fmt: skip


def keys() -> list[str]:
    return [row["Key"] for row in s3().list_objects_v2(Bucket="dry-run-models").get("Contents", [])]


def pointer() -> dict[str, str]:
    body = s3().get_object(Bucket="dry-run-models", Key="models/digits/latest.json")["Body"].read()
    value: dict[str, str] = json.loads(body)
    return value


def folder_of(tmp_path: Path, text: str) -> Path:
    made = tmp_path / f"artifact-{text}"
    (made / "onnx").mkdir(parents=True)
    (made / "onnx" / "model.onnx").write_text(text)
    (made / "config.json").write_text("{}")
    return made


def test_a_folder_goes_under_its_digest_and_the_pointer_moves_last(tmp_path: Path) -> None:
    made = push(tmp_path, folder_of(tmp_path, "one"))
    digest = made.figures["digest"]
    base = f"models/digits/{digest}"
    assert keys() == [
        f"{base}/config.json", f"{base}/manifest.json", f"{base}/onnx/model.onnx", "models/digits/latest.json",
    ]  # fmt: skip
    entries = json.loads(made["transcript"].read_text())["calls"]
    assert [e.get("key", e.get("pointer", "")).rpartition("/")[2] for e in entries[1:]] == [
        "config.json", "model.onnx", "manifest.json", "latest.json",
    ]  # fmt: skip
    manifest = s3().get_object(Bucket="dry-run-models", Key=f"{base}/manifest.json")["Body"].read()
    assert hashlib.sha256(manifest).hexdigest() == digest
    listed = json.loads(manifest)["files"]["onnx/model.onnx"]
    assert listed == {"bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest()}
    assert pointer() == {"digest": digest, "previous": ""}
    again = push(tmp_path, tmp_path / "artifact-one")
    assert again.context.converged
    assert calls(again) == []


def test_a_rollback_moves_the_pointer_alone(tmp_path: Path) -> None:
    digests = [
        push(tmp_path, folder_of(tmp_path, text)).figures["digest"] for text in ("one", "two", "three")
    ]
    before = keys()
    pushing = stage("push.s3")()
    context = push(tmp_path, tmp_path / "artifact-three").context
    params = pushing.Params.model_validate({"prefix": "models/digits"})
    assert str(digests[1])[:12] in pushing.rollback(context, params, "")
    assert pointer() == {"digest": digests[1], "previous": digests[2]}
    pushing.rollback(context, params, str(digests[0])[:8])
    assert pointer()["digest"] == digests[0]
    assert keys() == before
    with pytest.raises(StageError, match="no other release begins with 0000"):
        pushing.rollback(context, params, "0000")


def test_a_pointer_of_somebody_else_is_a_conflict(tmp_path: Path) -> None:
    push(tmp_path, folder_of(tmp_path, "one"))
    s3().put_object(Bucket="dry-run-models", Key="models/digits/latest.json", Body=b"not ours")
    with pytest.raises(ConflictError, match=r"latest\.json is not a pointer written by push\.s3"):
        push(tmp_path, folder_of(tmp_path, "two"))


def test_a_large_file_goes_in_parts_and_a_killed_upload_is_continued(tmp_path: Path) -> None:
    from deploy_runner.stages.push.aws import objects
    from deploy_runner.stages.push.transcript import Transcript

    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * (40 * MIB // 256))
    client = s3()
    client.create_bucket(Bucket="dry-run-models")
    upload = objects.Upload(client, "dry-run-models", "w", path, sha256_file(path))
    begun = client.create_multipart_upload(**upload.place, **upload.described)
    parts = list(upload.parts())
    assert [len(part) for part in parts] == [16 * MIB, 16 * MIB, 8 * MIB]
    client.upload_part(**upload.place, UploadId=begun["UploadId"], PartNumber=1, Body=parts[0])
    sent: list[int] = []
    client.meta.events.register(
        "before-call.s3.UploadPart", lambda params, **_: sent.append(params["query_string"]["partNumber"])
    )
    assert objects.put_once(upload, Transcript())
    assert sorted(sent) == [2, 3]
    assert objects.is_there(upload)
    assert client.list_multipart_uploads(Bucket="dry-run-models").get("Uploads", []) == []
    assert not objects.put_once(upload, Transcript())


def test_parts_grow_so_that_ten_thousand_are_enough(tmp_path: Path) -> None:
    from deploy_runner.stages.push.aws import objects

    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(500 << 30)
    upload = objects.Upload(None, "b", "k", path, "0" * 64)
    assert upload.part_bytes % MIB == 0
    assert -(-upload.size // upload.part_bytes) <= 10_000


def transform(folder: Path, factor: float | str, data: Path) -> StageRun:
    run = folder / f"run{len(list(folder.iterdir()))}"
    run.mkdir()
    return run_stage(stage("push.transform"), run, inputs={"package": package(run, factor), "data": data},
                     params={"job": "nightly"}, target=TARGET)  # fmt: skip


def test_a_transform_job_runs_once_and_brings_back_every_answer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, x in (("a.json", [1, 2]), ("b.json", [3])):
        (data / name).write_text(json.dumps({"inputs": {"x": x}}))
    made = transform(tmp_path, 2, data)
    answers = {p.name: json.loads(p.read_text())["outputs"]["y"] for p in made["answers"].iterdir()}
    assert answers == {"a.json.out": [2.0, 4.0], "b.json.out": [6.0]}
    again = transform(tmp_path, 2, data)
    assert again.context.converged
    assert sorted(p.name for p in again["answers"].iterdir()) == ["a.json.out", "b.json.out"]


def test_a_transform_job_that_fails_says_why_and_is_run_under_the_next_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(StageError, match="the folder `data` contains no file"):
        transform(tmp_path, 2, data)
    (data / "a.json").write_text('{"inputs": {}}')
    for suffix in ("", "-1"):
        with pytest.raises(
            GateError, match=rf"the job nightly-[0-9a-f]{{16}}{suffix} has failed: .*KeyError: 'x'"
        ):
            transform(tmp_path, 2, data)
