"""The versions of a registered model: found by digest, made once, named by an alias."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy_runner.sdk import ConflictError, StageError, first_line, sha256_file

from ..converging import Service

__all__ = ["DIGEST", "Models"]

_T = TypeVar("_T")
DIGEST = "deploy_runner.digest"
_BEFORE = "deploy_runner.before."
_ARTIFACTS = "model"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a server says of a model, and of an alias, that doesn't exist."""
_PAGES = ("BAD_REQUEST", "ENDPOINT_NOT_FOUND")
"""What its client says of a page with such a status, whoever has sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models(Service):
    """A registered model, by MLflow's own client."""

    client: Any
    name: str

    def trying(self, step: Callable[[], _T]) -> _T:
        """Return what a step returns; repeat it where an answer breaks off or isn't MLflow's.

        Its client repeats requests, but not those. A step finds what it has made before.
        """
        from mlflow.exceptions import MlflowException, RestException

        for tried in itertools.count(1):
            try:
                return step()
            except MlflowException as error:
                broken = error.error_code == "INTERNAL_ERROR" and "Max retries exceeded" not in str(error)
                foreign = error.error_code in _PAGES and not isinstance(error, RestException)
                if not (broken or foreign) or not self.backoff.wait(tried, first_line(error)):
                    raise
        raise AssertionError

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
        if self.with_digest(digest) is None:
            self.transcript.add("CreateModelVersion", model=self.name, digest=digest)
            self.client.create_model_version(self.name, f"runs:/{run}/{_ARTIFACTS}", run, tags=dict(tags))
        return self._only(digest, run)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != _EXISTS:
                raise
        else:
            self.transcript.add("CreateRegisteredModel", model=self.name)

    def _run(self, experiment: str, digest: str) -> str:
        """Return the run of a digest: one that a push which was killed has left, or a new one.

        Others of it, which a lost answer has had the client make, are deleted.
        """
        place = self._place(experiment)
        runs = self._runs(place, digest)
        if not runs:
            self.transcript.add("CreateRun", experiment=experiment, digest=digest)
            self.client.create_run(place, tags={DIGEST: digest})
            runs = self._runs(place, digest)
        run, *again = runs
        for row in again:
            self.client.delete_run(row.info.run_id)
        if run.info.status == "RUNNING":
            self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _place(self, experiment: str) -> str:
        """Return the id of an experiment, which is made if it is missing."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            try:
                return str(self.client.create_experiment(experiment))
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
            found = self.client.get_experiment_by_name(experiment)
        return str(found.experiment_id)

    def _runs(self, place: str, digest: str) -> list[Any]:
        """Return the runs of a digest, the oldest first: of several pushes each takes the same."""
        found = self.client.search_runs([place], f"tags.`{DIGEST}` = '{digest}'")
        return sorted(found, key=lambda row: (row.info.start_time, row.info.run_id))

    def _read_back(self, run: str, files: Mapping[str, Path]) -> None:
        from mlflow.exceptions import MlflowException

        target = self.ctx.workdir / "read_back"
        target.mkdir(exist_ok=True)
        for name, path in files.items():
            try:
                found = Path(self.client.download_artifacts(run, f"{_ARTIFACTS}/{name}", str(target)))
            except MlflowException as error:  # Whatever it was, its client says that the path is wrong.
                raise MlflowException(f"{name} can't be read back: {first_line(error)}") from error
            if sha256_file(found) != sha256_file(path):
                raise MlflowException(f"{name} of {self.name} has a different digest when read back")
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
            self.transcript.add("SetRegisteredModelAlias", model=self.name, alias=alias)
            self.client.set_registered_model_alias(self.name, alias, version)
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
