"""The versions of a registered model: found by digest, made once, named by an alias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_runner.sdk import ConflictError, StageError, sha256_file

from ..converging import Service

__all__ = ["DIGEST", "Models"]

DIGEST = "deploy_runner.digest"
_BEFORE = "deploy_runner.before."
_ARTIFACTS = "model"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a server says of a model, and of an alias, that doesn't exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models(Service):
    """A registered model, by MLflow's own client."""

    client: Any
    name: str

    def aliased(self, alias: str) -> Any | None:
        """Return the version that an alias names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code not in _MISSING:
                raise
            return None

    def versions(self) -> list[Any]:
        """Return the ready versions that have a digest, the oldest first."""
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_model_versions(f"name='{self.name}'", page_token=token or None)
            found += [row for row in page if DIGEST in row.tags and row.status == "READY"]
            token = page.token or None
        return sorted(found, key=lambda row: int(row.version))

    def with_digest(self, digest: str) -> Any | None:
        """Return the first version with a digest, or None."""
        return next((row for row in self.versions() if row.tags[DIGEST] == digest), None)

    def matching(self, to: str) -> Any:
        """Return the version whose digest begins with `to`. Raises StageError."""
        known = {row.tags[DIGEST]: row for row in reversed(self.versions())}
        found = [digest for digest in known if digest.startswith(to)]
        if len(found) != 1:
            some = ", ".join(sorted(digest[:12] for digest in known)) or "none"
            what = "several versions' digests begin" if found else "no version's digest begins"
            raise StageError(f"{what} with {to}", fix=f"existing ones: {some}")
        return known[found[0]]

    def register(
        self, folder: Path, files: Mapping[str, Path], digest: str, experiment: str, tags: Mapping[str, str]
    ) -> Any:
        """Upload a model's folder to a run, read it back, and make a version of it."""
        self._ensure_model()
        run = self._run(experiment, digest)
        self.client.log_artifacts(run, str(folder), _ARTIFACTS)
        self._read_back(run, files)
        self.client.create_model_version(self.name, f"runs:/{run}/{_ARTIFACTS}", run, tags=dict(tags))
        self.transcript.add("CreateModelVersion", model=self.name, digest=digest)
        return self._only(digest, run)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        else:
            self.transcript.add("CreateRegisteredModel", model=self.name)

    def _run(self, experiment: str, digest: str) -> str:
        """Return the run of a digest: one that a push which was killed has left, or a new one."""
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        runs = self.client.search_runs([place], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        run = str(self.client.create_run(place, tags={DIGEST: digest}).info.run_id)
        self.client.set_terminated(run)
        self.transcript.add("CreateRun", experiment=experiment, digest=digest)
        return run

    def _read_back(self, run: str, files: Mapping[str, Path]) -> None:
        target = self.ctx.workdir / "read_back"
        target.mkdir()
        for name, path in files.items():
            found = Path(self.client.download_artifacts(run, f"{_ARTIFACTS}/{name}", str(target)))
            if sha256_file(found) != sha256_file(path):
                raise StageError(f"{name} of {self.name} has a different digest when read back")
            found.unlink()

    def lost(self, version: Any, files: Mapping[str, Path]) -> str:
        """Return the first file that a version doesn't have in its size, or nothing."""
        there = {row.path: row.file_size for row in self.client.list_artifacts(version.run_id, _ARTIFACTS)}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        return next((n for n, size in sizes.items() if there.get(f"{_ARTIFACTS}/{n}") != size), "")

    def _only(self, digest: str, run: str) -> Any:
        """Return the version of a digest; delete what a lost answer, or a push beside, made twice."""
        same = [row for row in self.versions() if row.tags[DIGEST] == digest]
        for row in same[1:]:
            if row.run_id == run:
                self.client.delete_model_version(self.name, row.version)
        return same[0]

    def move(self, alias: str, before: Any | None, version: str) -> None:
        """Move an alias from what it named when the push began. Raises ConflictError if others moved it."""
        old = str(before.version) if before else ""
        if old == version:
            return
        found = self.aliased(alias)
        if (str(found.version) if found else "") == old:
            if old:
                self.client.set_registered_model_tag(self.name, f"{_BEFORE}{alias}", old)
            self.client.set_registered_model_alias(self.name, alias, version)
            self.transcript.add("SetRegisteredModelAlias", model=self.name, alias=alias)
            found = self.aliased(alias)
        if found is None or str(found.version) != version:
            named = f"version {found.version}" if found else "nothing"
            raise ConflictError(f"the alias {alias} of {self.name} was moved to {named} by another push",
                                fix="run again")  # fmt: skip

    def previous(self, alias: str) -> Any | None:
        """Return the version that the alias named before, or None."""
        tags = self.client.get_registered_model(self.name).tags
        number = tags.get(f"{_BEFORE}{alias}", "")
        return next((row for row in self.versions() if str(row.version) == number), None)
