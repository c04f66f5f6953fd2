"""`verify`: is a signed folder what its signer signed? By a public key or certificates, offline."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from ..engine.fetch import local_folder
from ..errors import GateError, UsageError, counted
from ..server.reasons import first_line, reason
from ..store.stat import sha256_file
from .options import Argument, JsonSwitch, Option

__all__ = ["Verified", "Verify", "verify"]

SIGNATURE, PROVENANCE, MATERIALS = "model.sig", "provenance.json", "sbom.cdx.json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://slsa.dev/provenance/v1"


class Verified(NamedTuple):
    """What was found true: the files by SHA-256, what they were made from, and by which deploy-runner.

    The latter are empty for a folder that other tools signed, without provenance.
    """

    files: dict[str, str]
    sources: dict[str, str]
    runner: str


class Verify(NamedTuple):
    """Check a signed package, offline."""

    address: Annotated[str, Argument(
        "the output `signed` of package.sign, or a copy of it: a folder or a tar archive, "
        "file://, s3://bucket/prefix or hf://owner/name[@revision][/folder]", "PATH|URI",
    )]  # fmt: skip
    key: Annotated[str | None, Option("the signer's public key", "PUBLIC.pem")] = None
    certificate: Annotated[
        tuple[str, ...], Option("a root certificate to trust instead of a key; may be repeated", "ROOT.pem")
    ] = ()
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print the digest of each file that was signed, and what it was made from."""
        found = verify(self.address, key=self.key, certificates=self.certificate)
        if self.json:
            print(json.dumps({"verified": True, **found._asdict()}, ensure_ascii=False))
            return 0
        for name, digest in found.files.items():
            print(f"{digest}  {name}")
        sources = ", ".join(found.sources)
        made = f", made by deploy-runner {found.runner} from {sources}" if found.runner else ""
        print(f"verified: {counted(len(found.files), 'file')}{made}")
        return 0


def verify(address: str, *, key: str | None, certificates: Sequence[str]) -> Verified:
    """Check the signature, that it covers each file and no other, provenance and bill of materials.

    The address is a folder or tar archive, here or at `file://`, `s3://` or `hf://`; once it is here,
    nothing is asked of the network. Raises UsageError where there is nothing to check, or nothing to
    check it with, GateError for what is not as signed.
    """
    if (key is None) == (not certificates):
        raise UsageError(
            "verify needs a key or a certificate to trust", fix="--key PUBLIC.pem, or --certificate ROOT.pem"
        )
    for given in ([key] if key else []) + list(certificates):
        if not Path(given).is_file():
            raise UsageError(f"{given} does not exist")
    with local_folder(address) as folder:
        return _verify_folder(folder, key, certificates)


def _verify_folder(folder: Path, key: str | None, certificates: Sequence[str]) -> Verified:
    files = _files(folder)
    if SIGNATURE not in files:
        raise GateError(f"{SIGNATURE} is missing: the folder is not signed")
    _check_signature(folder, key, certificates)
    found = {n: sha256_file(p) for n, p in files.items() if n not in (SIGNATURE, PROVENANCE, MATERIALS)}
    if MATERIALS in files:
        _check_materials(folder)
    if PROVENANCE not in files:  # It was never there: without it the signature would not hold.
        return Verified(found, {}, "")
    statement = _statement(folder)
    _check_subjects(statement, found)
    definition = statement["predicate"]["buildDefinition"]
    sources = {
        row["name"]: next(iter(row["digest"].values()))
        for row in definition["resolvedDependencies"]
        if "digest" in row
    }
    runner = statement["predicate"]["runDetails"]["builder"].get("version", {}).get("deploy-runner", "")
    return Verified(found, sources, runner)


def _files(folder: Path) -> dict[str, Path]:
    """Return the regular files; anything else could lead the checks elsewhere."""
    files: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise GateError(f"{path.relative_to(folder)} is a link or not a regular file")
        files |= {(Path(place) / n).relative_to(folder).as_posix(): Path(place) / n for n in names}
    return files


def _check_signature(folder: Path, key: str | None, certificates: Sequence[str]) -> None:
    try:
        from model_signing import hashing, verifying
    except ImportError:
        fix = "pip install 'deploy-runner[sign]'"
        raise UsageError("signatures need the extra `sign`", fix=fix) from None
    logging.getLogger("model_signing").setLevel(logging.CRITICAL)
    config: Any = verifying.Config()
    covered: Any = hashing.Config()
    config.set_hashing_config(covered.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False))
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=list(certificates))
    except Exception as error:
        raise UsageError(f"{key or certificates[0]} can't be used: {first_line(error)}") from None
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:
        said = reason(error) or "it was created with another key"
        raise GateError(f"the signature is invalid: {said}") from None


def _statement(folder: Path) -> dict[str, Any]:
    try:
        statement: dict[str, Any] = json.loads((folder / PROVENANCE).read_text("utf-8"))
        kinds = (statement["_type"], statement["predicateType"])
        definition, details = (statement["predicate"][n] for n in ("buildDefinition", "runDetails"))
        whole = isinstance(definition["resolvedDependencies"], list) and "id" in details["builder"]
    except (ValueError, KeyError, TypeError):
        raise GateError(f"{PROVENANCE} is not an in-toto statement with SLSA provenance") from None
    if kinds != (_STATEMENT_TYPE, _PREDICATE_TYPE) or not whole:
        raise GateError(f"{PROVENANCE} is not an in-toto statement with SLSA provenance")
    return statement


def _check_subjects(statement: dict[str, Any], found: dict[str, str]) -> None:
    expected = {row["name"]: row["digest"]["sha256"] for row in statement["subject"]}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise GateError(f"{name} is listed in the provenance but missing")
        if name not in expected:
            raise GateError(f"{name} is not listed in the provenance")
        if expected[name] != found[name]:
            raise GateError(f"{name} differs from the file in the provenance")


def _check_materials(folder: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (folder / MATERIALS).read_text("utf-8", errors="replace")
    if JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise GateError(f"{MATERIALS} is not valid CycloneDX 1.6")
