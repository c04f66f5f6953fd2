"""Uploads to the local Hub: which files are large, and the LFS protocol for them, whole or in parts."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from ..store.stat import sha256_file
from .hub_http import route
from .hub_pulls import PullHandler
from .hub_rules import wants_lfs
from .hub_state import HubError

__all__ = ["UploadHandler"]

_CHUNK_BYTES = 1 << 20


class UploadHandler(PullHandler):
    """Answers what concerns large files, too."""

    @route("POST", "/api/{repo}/preupload/(?P<revision>.+)")
    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        body = self._json_body()
        commit = self.hub.state.resolve(self._proposable(kind, repo), revision)
        answers = []
        for file in body.get("files", []):
            lfs = wants_lfs(file["path"], int(file["size"]))
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
            }
            if (known := commit.files.get(file["path"])) is not None:
                answer["oid"] = known.lfs or known.oid
            answers.append(answer)
        self._json({"files": answers})

    @route("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def _lfs_batch(self, repo: str, kind: str = "models") -> None:
        body = self._json_body()
        if "ref" in body and not body["ref"].get("name", "").startswith("refs/pr/"):
            self._writable(kind, repo)
        self._repo(kind, repo)
        self._require_token()
        self._require_room(body["objects"])
        multipart = "multipart" in body.get("transfers", [])
        objects = [self._lfs_object(o["oid"], int(o["size"]), multipart) for o in body["objects"]]
        large = multipart and any(int(o["size"]) > self.hub.multipart_bytes for o in body["objects"])
        self._json({"transfer": "multipart" if large else "basic", "objects": objects})

    def _require_room(self, objects: list[dict[str, Any]]) -> None:
        if self.hub.quota_bytes is None:
            return
        there = sum(path.stat().st_size for path in (self.hub.state.root / "lfs").glob("*"))
        if there + sum(int(o["size"]) for o in objects) > self.hub.quota_bytes:
            raise HubError(403, "Private repository storage limit reached, please upgrade your plan")

    def _lfs_object(self, oid: str, size: int, multipart: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if self.hub.state.lfs_path(oid).exists():
            return answer
        href = f"{self._url}/_lfs/{oid}"
        upload: dict[str, Any] = {"href": href}
        if multipart and size > self.hub.multipart_bytes:
            part_bytes = self.hub.multipart_bytes // 4
            count = -(-size // part_bytes)
            parts = {str(n): f"{href}/part/{n}" for n in range(1, count + 1)}
            upload = {
                "href": f"{href}/complete",
                "header": {"chunk_size": str(part_bytes), **parts},
            }
        answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
        return answer

    @route("PUT", r"/_lfs/(?P<oid>\w+)(?:/part/(?P<part>\d+))?")
    def _lfs_put(self, oid: str, part: str = "") -> None:
        state = self.hub.state
        name = f"{oid}.{part}" if part else oid
        incoming = state.root / "incoming" / f"{name}.{threading.get_ident()}.part"
        incoming.parent.mkdir(parents=True, exist_ok=True)
        try:
            with incoming.open("wb") as file:
                self._body_to(file)
            digest = sha256_file(incoming)
            if part:
                incoming.replace(incoming.with_name(name))
            else:
                self._place(incoming, state.lfs_path(oid), oid, digest)
        finally:
            incoming.unlink(missing_ok=True)
        self._send(b"", "text/plain", headers={"ETag": f'"{digest}"'})

    def _place(self, incoming: Path, final: Path, oid: str, digest: str) -> None:
        if digest != oid:
            incoming.unlink()
            raise HubError(400, f"The content has the SHA-256 {digest}, not {oid}")
        final.parent.mkdir(parents=True, exist_ok=True)
        incoming.replace(final)

    @route("POST", r"/_lfs/(?P<oid>\w+)/complete")
    def _lfs_complete(self, oid: str) -> None:
        """Put the parts together. Once that is done the upload is gone, as S3 has it."""
        rows = sorted(self._json_body()["parts"], key=lambda row: int(row["partNumber"]))
        folder = self.hub.state.root / "incoming"
        parts = [folder / f"{oid}.{int(row['partNumber'])}" for row in rows]
        with self.hub.state.lock:
            if not all(part.exists() for part in parts):
                raise HubError(404, "NoSuchUpload: the specified multipart upload does not exist")
            whole, digest = folder / f"{oid}.whole", hashlib.sha256()
            with whole.open("wb") as target:
                for place in parts:
                    with place.open("rb") as source:
                        while chunk := source.read(_CHUNK_BYTES):
                            target.write(chunk)
                            digest.update(chunk)
            self._place(whole, self.hub.state.lfs_path(oid), oid, digest.hexdigest())
            for part in parts:
                part.unlink()
        self._json({"success": True})

    @route("POST", r"/_lfs/(?P<oid>\w+)/verify")
    def _lfs_verify(self, oid: str) -> None:
        body, path = self._json_body(), self.hub.state.lfs_path(oid)
        if not path.exists() or path.stat().st_size != int(body["size"]):
            raise HubError(404, f"LFS object {oid} is not here")
        self._json({"message": "ok"})
