"""package.sign and verify: what is signed is checked to the last bit, and says what it was made from."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy_runner.commands.signed import verify
from deploy_runner.errors import GateError, UsageError
from deploy_runner.local.servers import dry_run
from tests.conftest import Project
from tests.security.keys import PIPELINE, new_key, pem


def test_a_signed_folder_verifies_offline_and_says_what_it_was_made_from(
    signed: tuple[Project, Path, Path, str],
) -> None:
    project, folder, public, _ = signed
    done = project.cli("verify", "out", "--key", str(public))
    assert done.stdout.splitlines()[-1].startswith("verified: 2 files, made by deploy-runner 0.1.0 from ")
    found = verify(str(folder), key=str(public), certificates=[])
    assert sorted(found.files) == ["first.txt", "second.txt"]
    assert "in.txt" in found.sources
    assert json.loads(project.cli("verify", "out", "--key", str(public), "--json").stdout)["verified"] is True


def test_the_provenance_names_every_stage_parameter_source_and_package(
    signed: tuple[Project, Path, Path, str],
) -> None:
    project, folder, _, _ = signed
    statement = json.loads((folder / "provenance.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["stages"]["a"] == {
        "uses": "text.upper",
        "with": {"suffix": "!", "times": 1},
        "trust": False,
    }
    assert {"in.txt", "stages/texts.py"} <= {row.get("name") for row in definition["resolvedDependencies"]}
    assert {row["name"] for row in statement["predicate"]["runDetails"]["byproducts"]} >= {"a.text", "b.text"}
    materials = json.loads((folder / "sbom.cdx.json").read_text())
    assert materials["metadata"]["component"]["type"] == "machine-learning-model"
    metrics = materials["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "accuracy", "value": "99.2", "slice": "accuracy"} in metrics
    assert project.run(SIGNING_KEY="another")["hit"] == 3


def test_the_description_is_the_same_in_another_folder_and_the_key_is_nowhere(
    signed: tuple[Project, Path, Path, str], tmp_path: Path
) -> None:
    project, folder, _, private = signed
    other = Project(tmp_path / "elsewhere")
    for name in ("stages/texts.py", "in.txt", "accuracy.json", "pipeline.yaml"):
        other.write(name, (project.folder / name).read_bytes())
    other.run(SIGNING_KEY=private, TZ="Asia/Tokyo", PYTHONHASHSEED="9")
    other.cli("get", "signed", "--to", "out")
    for name in ("provenance.json", "sbom.cdx.json"):
        assert (other.folder / "out" / name).read_bytes() == (folder / name).read_bytes()
    secret = private.splitlines()[1].encode()
    for path in (project.folder / ".deploy-runner").rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path


def test_a_change_upstream_that_keeps_the_bytes_is_signed_anew(
    signed: tuple[Project, Path, Path, str],
) -> None:
    """The artifacts stay the same, what they were made from doesn't."""
    project, _, _, private = signed
    text = (project.folder / "stages/texts.py").read_text()
    project.write("stages/texts.py", text + "\n# another version of the same\n")
    assert "the provenance of its inputs" not in project.cli("explain", "a", SIGNING_KEY=private).stdout
    assert project.states(SIGNING_KEY=private)["signed"] == "ran"


@pytest.mark.slow
def test_a_copy_in_a_bucket_and_on_the_hub_is_verified(
    signed: tuple[Project, Path, Path, str], tmp_path: Path
) -> None:
    import boto3
    from huggingface_hub import HfApi

    project, folder, public, _ = signed
    key = ("--key", str(public))
    with dry_run(tmp_path / "servers", services=("aws", "hub"), log=lambda line: None) as env:
        env = {**env, "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}
        s3 = boto3.client(
            "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="dry-run", aws_secret_access_key="dry-run",
        )  # fmt: skip
        s3.create_bucket(Bucket="models")
        for path in folder.iterdir():
            s3.upload_file(str(path), "models", f"shout/1/{path.name}")
        hub = HfApi(endpoint=env["HF_ENDPOINT"], token=env["HF_TOKEN"])
        hub.create_repo("me/shout")
        hub.upload_folder(repo_id="me/shout", folder_path=folder, path_in_repo="signed")
        for address in ("s3://models/shout/1", "hf://me/shout@main/signed"):
            assert "verified: 2 files" in project.cli("verify", address, *key, **env).stdout
        s3.put_object(Bucket="models", Key="shout/1/first.txt", Body=b"changed")
        done = project.cli("verify", "s3://models/shout/1", *key, exits=1, **env)
        assert "the signature is invalid" in done.stderr
        for address in ("s3://models/none", "s3://nowhere/x", "hf://me/none", "hf://me/shout/none"):
            done = project.cli("verify", address, *key, exits=2, **env)
            assert done.stderr.startswith(f"error: {address} can't be fetched: ")
            assert done.stderr.count("\n") == 1
    assert "can't be fetched" in project.cli("verify", "https://example.test/x", *key, exits=2).stderr


def _edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _swap(folder: Path) -> None:
    (folder / "first.txt").rename(folder / "x")
    (folder / "second.txt").rename(folder / "first.txt")
    (folder / "x").rename(folder / "second.txt")


def _payload(folder: Path) -> None:
    bundle = json.loads((folder / "model.sig").read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"first.txt", b"third.txt")).decode()
    (folder / "model.sig").write_text(json.dumps(bundle))


def _write(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("x")


TAMPERING: dict[str, Callable[[Path], Any]] = {
    "one bit": lambda f: _edit(f / "first.txt", _flip),
    "one bit of the provenance": lambda f: _edit(f / "provenance.json", lambda d: d.replace(b"text.upper", b"text.lower")),
    "one bit of the materials": lambda f: _edit(f / "sbom.cdx.json", lambda d: d.replace(b"99.2", b"99.9")),
    "an extra file": lambda f: (f / "extra.txt").write_text("x"),
    "an extra file that git ignores": lambda f: (f / ".gitignore").write_text("x"),
    "an extra folder with a file": lambda f: _write(f / ".git/config"),
    "a missing file": lambda f: (f / "first.txt").unlink(),
    "a renamed file": lambda f: (f / "first.txt").rename(f / "third.txt"),
    "two files exchanged": _swap,
    "a link in place of a file": lambda f: (f / "first.txt").symlink_to((f / "first.txt").rename(f.parent / "moved")),
    "an emptied file": lambda f: (f / "first.txt").write_bytes(b""),
    "no signature": lambda f: (f / "model.sig").unlink(),
    "an empty signature": lambda f: (f / "model.sig").write_bytes(b""),
    "a truncated signature": lambda f: _edit(f / "model.sig", lambda d: d[: len(d) // 2]),
    "no provenance": lambda f: (f / "provenance.json").unlink(),
    "no materials": lambda f: (f / "sbom.cdx.json").unlink(),
    "another payload": _payload,
    "a signature that is no bundle": lambda f: (f / "model.sig").write_text('{"a": []}'),
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING)
def test_every_tampering_is_refused(
    signed: tuple[Project, Path, Path, str], tamper: Callable[[Path], object]
) -> None:
    project, folder, public, _ = signed
    tamper(folder)
    done = project.cli("verify", "out", "--key", str(public), exits=1)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_another_key_and_no_key_are_refused(signed: tuple[Project, Path, Path, str], tmp_path: Path) -> None:
    project, folder, public, _ = signed
    _, other = new_key(tmp_path, "other")
    with pytest.raises(GateError, match="the signature is invalid"):
        verify(str(folder), key=str(other), certificates=[])
    assert "verify needs a key or a certificate to trust" in project.cli("verify", "out", exits=2).stderr
    assert "is not a folder" in project.cli("verify", "in.txt", "--key", str(public), exits=2).stderr
    project.write("no.pem", "no key")
    assert "no.pem can't be used" in project.cli("verify", "out", "--key", "no.pem", exits=2).stderr
    with pytest.raises(UsageError, match="does not exist"):
        verify(str(folder), key="none.pem", certificates=[])


def test_a_key_that_is_none_is_one_sentence_that_does_not_quote_it(project: Project) -> None:
    project.write("accuracy.json", "{}")
    project.pipeline(PIPELINE)
    done = project.cli("run", exits=1, SIGNING_KEY="hunter2-is-no-key")
    assert "the artifacts can't be signed" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def model_signing(*args: str | Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("model_signing")
    return subprocess.run([tool, *args], capture_output=True, text=True, check=False)


def test_the_tool_of_openssf_verifies_ours_and_we_verify_its(
    signed: tuple[Project, Path, Path, str], tmp_path: Path
) -> None:
    _, folder, public, private = signed
    done = model_signing("verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=lambda *_: ["model.sig", "provenance.json", "sbom.cdx.json"])
    (tmp_path / "key.pem").write_text(private)
    done = model_signing(
        "sign", "key", other, "--signature", other / "model.sig", "--private_key", tmp_path / "key.pem"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(verify(str(other), key=str(public), certificates=[]).files) == ["first.txt", "second.txt"]
    (other / "first.txt").write_text("changed")
    with pytest.raises(GateError, match="the signature is invalid: .*Hash mismatch for 'first.txt'"):
        verify(str(other), key=str(public), certificates=[])


def certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    import datetime

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )  # fmt: skip
    if issuer is not None:
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def test_a_certificate_is_trusted_by_its_root(project: Project, tmp_path: Path) -> None:
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, None, root_key)
    own = certificate("signer", key, root, root_key)
    for name, made in (("root.pem", root), ("own.pem", own)):
        project.write(name, made.public_bytes(serialization.Encoding.PEM))
    stranger_key = ec.generate_private_key(ec.SECP256R1())
    project.write(
        "stranger.pem",
        certificate("stranger", stranger_key, None, stranger_key).public_bytes(serialization.Encoding.PEM),
    )
    project.write("accuracy.json", "{}")
    project.pipeline(
        PIPELINE.replace("reports: {accuracy: accuracy.json}", "certificate: own.pem\n    chain: [root.pem]")
    )
    project.run(SIGNING_KEY=pem(key))
    project.cli("get", "signed", "--to", "out")
    assert "verified: 2 files" in project.cli("verify", "out", "--certificate", "root.pem").stdout
    assert (
        "the signature is invalid"
        in project.cli("verify", "out", "--certificate", "stranger.pem", exits=1).stderr
    )
