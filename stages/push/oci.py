"""`push.oci`: an artifact as a ModelPack in an OCI registry, and a tag that names the newest."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    ConflictError,
    Context,
    Field,
    File,
    Finding,
    Folder,
    StageError,
    StageInputs,
    StageParams,
    counted,
)

from .backoff import Backoff
from .converging import Push
from .registry.blobs import has_blob, put_blob
from .registry.client import Registry, registry_of
from .registry.login import Login, find_login
from .registry.modelpack import ARTIFACT, Pack, pack

_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?")
_SHORT = 12


class PushOci(Push):
    """Upload a file or a folder to an OCI registry as a ModelPack, and move a tag to it last.

    Each file is a layer, uploaded unless the registry has it, and read back. The manifest, whose
    digest identifies the release, gets the tag `TAG-DIGEST`; `TAG-previous` names the release that
    `TAG` named before. If somebody else moves the tag meanwhile, or it names something other than a
    model, that is a conflict.
    """

    uses = "push.oci"
    packages = ("requests",)
    extra = "oci"
    services = ("oci",)

    class Params(StageParams):
        """Where to; the registry that is left out comes from the target's `oci:`."""

        repository: str = Field(
            pattern=r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$",
            description="the repository, e.g. models/digits",
        )
        registry: str | None = Field(None, description="the registry's HOST or HOST:PORT, e.g. ghcr.io")
        tag: str = Field(
            "latest", pattern=r"^\w[\w.-]{0,99}$", description="the tag that is moved to the release"
        )
        name: str | None = Field(
            None, pattern=r"^[^/]+$", description="the name of a single file (default: artifact.…)"
        )
        licenses: list[str] = Field([], description="the model's licences, as SPDX identifiers")
        username: str | None = Field(
            None, description="the registry's user (default: what docker login or podman login has stored)"
        )
        password: str | None = Field(None, description="the password or token, as ${{ secrets.NAME }}")

    class Inputs(StageInputs):
        """The artifact."""

        artifact: File | Folder = Field(description="what to upload")

    def check_target(
        self, params: Mapping[str, Any], target: Mapping[str, Any], environ: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return whether the registry is missing, or no address of one."""
        if "$secret" in (params["registry"] or ()):
            return {}
        host = _host(params["registry"], target, {})  # The variable is a dry run's.
        return {} if _HOST.fullmatch(host) else {"oci.registry": host and f"{host!r} is no HOST or HOST:PORT"}

    @contextmanager
    def service(self, ctx: Context, params: Params, backoff: Backoff) -> Iterator[Registry]:
        """Yield the repository."""
        with registry_of(ctx, backoff, _login(ctx, params), params.repository, "pull,push") as registry:
            yield registry

    def converge(self, registry: Registry, params: Params, inputs: Inputs, outputs: Any) -> dict[str, Any]:
        """Blobs first, then the manifest, the tag last; then read back."""
        release = _release(registry.ctx, params, inputs.artifact)
        before = _tagged(registry, params.tag)
        for blob in release.blobs:
            put_blob(registry, blob)
        own = f"{params.tag}-{release.digest[:_SHORT]}"
        _put(registry, own, release.digest, release.manifest)
        _move(registry, params.tag, before, (release.manifest, release.digest))
        registry.ctx.figure("digest", release.digest)
        registry.ctx.figure("repository", params.repository)
        manifest = json.loads(release.manifest)
        return {"repository": params.repository, "tag": params.tag, "manifest": manifest}

    def credentials(self, ctx: Context, params: Params) -> str:
        """Return where the login was found."""
        login = _login(ctx, params)
        if not login.found:
            raise StageError(f"no login for {login.host} was found",
                             fix=f"docker login {login.host}, or set username and password")  # fmt: skip
        return f"a login for {login.host} was found in {login.found}"

    def findings(self, registry: Registry, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare the blobs and the tag with what the pipeline says."""
        release = _release(registry.ctx, params, inputs.artifact)
        missing = [blob for blob in release.blobs if not has_blob(registry, blob)]
        tagged = registry.manifest(params.tag)
        wanted = counted(len(release.blobs), "file")
        return [
            Finding("blobs", wanted, f"{counted(len(missing), 'file')} missing" if missing else wanted),
            Finding("tag", release.digest, tagged[1] if tagged else "missing"),
        ]

    def restore(self, registry: Registry, params: Params, to: str) -> str:
        """Move the tag to what it named before, or to the digest that begins with `to`."""
        now = _tagged(registry, params.tag)
        wanted = _matching(registry, params.tag, to) if to else _tagged(registry, f"{params.tag}-previous")
        if now is None or wanted is None or wanted == now:
            raise StageError(f"{registry.name}:{params.tag} has no previous release",
                             fix="specify a digest: --to DIGEST")  # fmt: skip
        registry.put_manifest(params.tag, wanted[0])
        registry.put_manifest(f"{params.tag}-previous", now[0])
        return f"{params.tag} names {wanted[1][:_SHORT]} instead of {now[1][:_SHORT]}"


def _login(ctx: Context, params: PushOci.Params) -> Login:
    host = _host(params.registry, ctx.target, os.environ)
    if not host:
        raise StageError("registry is not set", fix="set `with.registry` or `target.oci.registry`")
    if not _HOST.fullmatch(host):
        raise StageError(f"the registry {host!r} is no HOST or HOST:PORT", fix="write it as in docker login")
    return find_login(host, params.username, params.password)


def _host(registry: str | None, target: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    oci = target.get("oci")
    said = oci.get("registry") if isinstance(oci, Mapping) else None
    return str(environ.get("OCI_REGISTRY") or registry or said or "")


def _release(ctx: Context, params: PushOci.Params, artifact: Path) -> Pack:
    if artifact.is_file():
        name = params.name or artifact.name
        files, known = {name: artifact}, {name: ctx.digests.get("artifact", "")}
    else:
        files = {p.relative_to(artifact).as_posix(): p for p in artifact.rglob("*") if p.is_file()}
        known = {}
    return pack(files, known, params.repository.rpartition("/")[2], params.licenses, ctx.workdir)


def _tagged(registry: Registry, tag: str) -> tuple[bytes, str] | None:
    """Return the manifest that a tag names, and its digest. Raises ConflictError where it is no model's."""
    found = registry.manifest(tag)
    if found is None:
        return None
    try:
        kind = json.loads(found[0]).get("artifactType")
    except (ValueError, AttributeError):
        kind = None
    if kind != ARTIFACT:
        raise ConflictError(f"{registry.name}:{tag} names something other than a model",
                            fix="use another tag or repository")  # fmt: skip
    return found


def _put(registry: Registry, tag: str, digest: str, manifest: bytes) -> None:
    """Put a manifest under a tag of its own, unless it is there."""
    found = registry.manifest(tag)
    if found is None:
        registry.put_manifest(tag, manifest)
    elif found[1] != digest:
        raise ConflictError(
            f"{registry.name}:{tag} names the release {found[1][:_SHORT]}", fix="remove that tag"
        )


def _move(registry: Registry, tag: str, before: tuple[bytes, str] | None, release: tuple[bytes, str]) -> None:
    """Move the tag from what it named when the push began. Raises ConflictError if others moved it."""
    if before == release:
        return
    if _tagged(registry, tag) == before:
        if before is not None:
            registry.put_manifest(f"{tag}-previous", before[0])
        registry.put_manifest(tag, release[0])
    found = registry.manifest(tag)
    if found != release:
        named = found[1][:_SHORT] if found else "nothing"
        raise ConflictError(f"{registry.name}:{tag} was moved to {named} by another push", fix="run again")


def _matching(registry: Registry, tag: str, to: str) -> tuple[bytes, str]:
    """Return the release whose digest begins with `to`."""
    beginning = re.compile(rf"{re.escape(tag)}-([0-9a-f]{{{_SHORT}}})")
    known = [found.group(1) for name in registry.tags() if (found := beginning.fullmatch(name))]
    matching = [short for short in known if short.startswith(to[:_SHORT])]
    release = _tagged(registry, f"{tag}-{matching[0]}") if len(matching) == 1 else None
    if release is None or not release[1].startswith(to):
        what = "several releases begin" if len(matching) > 1 else "no release begins"
        raise StageError(f"{what} with {to}", fix=f"existing releases: {', '.join(sorted(known)) or 'none'}")
    return release
