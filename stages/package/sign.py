"""`package.sign`: artifacts with their provenance, their bill of materials and one signature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
    first_line,
    sha256_file,
)

from . import provenance

SIGNATURE, PROVENANCE, MATERIALS = "model.sig", "provenance.json", "sbom.cdx.json"


class PackageSign(Stage):
    """Put artifacts into a folder with SLSA provenance and an ML-BOM, and sign all of it offline.

    The signature is an OpenSSF model signature: `deploy-runner verify PATH` and `model_signing
    verify` check it. Its bytes differ each time, even with the same key, because ECDSA is
    randomised.
    """

    uses = "package.sign"
    packages = ("model-signing", "cyclonedx-python-lib")
    extra = "sign"
    lineage = True

    class Params(StageParams):
        """Who signs, and what it is."""

        key: str = Field(description="the private key (PEM, P-256), as a secret: ${{ secrets.NAME }}")
        name: str = Field("model", description="the model's name in the bill of materials")
        license: str = Field("", description="an SPDX identifier, e.g. Apache-2.0")

    class Inputs(StageInputs):
        """What is signed."""

        artifacts: dict[str, File | Folder] = Field(
            description="files and folders, by their name in the package"
        )
        reports: dict[str, File] = Field(default={}, description="reports of verify.*, for the model card")
        certificate: File | None = Field(None, description="the key's certificate (PEM)")
        chain: list[File] = Field(default=[], description="the certificates up to the root")

    class Outputs(StageOutputs):
        """The signed folder."""

        signed: Folder = Output("signed", f"the artifacts, {PROVENANCE}, {MATERIALS} and {SIGNATURE}")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Copy, describe, sign, verify."""
        folder = outputs.signed
        folder.mkdir(exist_ok=True)
        for name, path in inputs.artifacts.items():
            _copy(name, path, folder)
        subjects = {p.relative_to(folder).as_posix(): sha256_file(p) for p in _files(folder)}
        if not subjects:
            raise StageError("there is nothing to sign: the artifacts contain no file")
        statement = provenance.statement(subjects, ctx.lineage)
        text = json.dumps(statement, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / PROVENANCE).write_text(text, "utf-8")
        materials = provenance.bill_of_materials(
            params.name, subjects, ctx.lineage, inputs.reports, params.license
        )
        (folder / MATERIALS).write_text(materials, "utf-8")
        _sign(ctx, params.key, inputs, folder)
        ctx.figure("files", len(subjects))
        ctx.figure("bytes", sum(p.stat().st_size for p in _files(folder)))
        ctx.figure("provenance_sha256", sha256_file(folder / PROVENANCE))


def _copy(name: str, path: Path, folder: Path) -> None:
    if "/" in name or name in (".", ".."):
        raise StageError(f"artifacts: {name!r} is not a valid file name")
    if path.is_dir():
        shutil.copytree(path, folder / name, copy_function=shutil.copy)
        return
    suffix = ".tar.gz" if path.name.endswith(".tar.gz") else path.suffix
    place = folder / (name if name.endswith(suffix) else f"{name}{suffix}")
    if place.name in (SIGNATURE, PROVENANCE, MATERIALS) or place.exists():
        raise StageError(f"artifacts: the name {place.name!r} is taken")
    shutil.copy(path, place)  # With its mode: what is executable stays so.


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _sign(ctx: Context, key: str, inputs: PackageSign.Inputs, folder: Path) -> None:
    """Sign by the key, or by the key and its certificate; the key is in a file for that long only."""
    from model_signing import hashing, signing

    private = ctx.workdir / "key.pem"
    private.touch(mode=0o600)
    private.write_text(key if key.endswith("\n") else f"{key}\n")
    try:
        config = signing.Config()
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False))
        if inputs.certificate is None:
            config.use_elliptic_key_signer(private_key=private)
        else:
            config.use_certificate_signer(
                private_key=private, signing_certificate=inputs.certificate, certificate_chain=inputs.chain
            )
        config.sign(folder, folder / SIGNATURE)
    except Exception as error:
        said = f"the artifacts can't be signed: {first_line(error)}"
        raise StageError(said, fix="use a P-256 private key (PEM) and the certificate of that key") from None
    finally:
        private.unlink()
