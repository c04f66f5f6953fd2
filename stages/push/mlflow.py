"""`push.mlflow`: an ONNX model as a version of a registered model of MLflow, and an alias that names it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    first_line,
)

from .backoff import Backoff
from .converging import Push
from .tracking.flavor import digest_of, save
from .tracking.versions import DIGEST, Models
from .transcript import Transcript

_RETRIES = "5"
_SHORT = 12


class PushMlflow(Push):
    """Register an ONNX model in MLflow once, with its signature, and move an alias to the version last.

    A version has the SHA-256 of the model's files as a tag, so a version that exists is found and
    not created again. What was uploaded is read back. If somebody else moves the alias meanwhile,
    that is a conflict.
    """

    uses = "push.mlflow"
    packages = ("mlflow-skinny", "onnx", "onnxruntime", "numpy", "pandas")
    extra = "mlflow"
    services = ("mlflow",)

    class Params(StageParams):
        """What it is called there; the server comes from the target's `mlflow: {tracking_uri: …}`."""

        name: str = Field(pattern=r"^[^/:@'\"]+$", description="the registered model's name")
        alias: str = Field("champion", pattern=r"^[\w-]+$", description="the alias that is moved")
        experiment: str | None = Field(
            None, pattern=r"^[^'\"]+$", description="the experiment of its runs (default: the model's name)"
        )
        tags: dict[str, str] = Field({}, description="further tags of the version")

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(description="an ONNX artifact")
        reference: Folder | None = Field(
            None,
            description="the bundle of model.prepare: its cases are tried, the first is the input example",
        )

    def check_target(
        self, params: Mapping[str, Any], target: Mapping[str, Any], environ: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return whether the server is missing."""
        return {} if _server(target) else {"mlflow.tracking_uri": ""}

    @contextmanager
    def service(self, ctx: Context, params: Params, backoff: Backoff) -> Iterator[Models]:
        """Yield the registered model."""
        said = _server(ctx.target)
        store = os.environ.get("DRY_RUN_MLFLOW")
        uri = (ctx.workdir / store).as_uri() if store else said
        if not uri:
            raise StageError(
                "no MLflow server is set", fix="add `mlflow: {tracking_uri: https://…}` to the target"
            )
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        if store:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        from mlflow import MlflowClient, set_tracking_uri
        from mlflow.exceptions import MlflowException

        set_tracking_uri(str(uri))
        try:
            yield Models(
                ctx=ctx, backoff=backoff, transcript=Transcript(), name=params.name,
                client=MlflowClient(tracking_uri=str(uri), registry_uri=str(uri)),
            )  # fmt: skip
        except MlflowException as error:
            raise StageError(f"MLflow at {uri} says: {first_line(error)}") from error

    def converge(self, models: Models, params: Params, inputs: Inputs, outputs: Any) -> dict[str, Any]:
        """Find or make the version, then move the alias to it."""
        ctx = models.ctx
        files, digest = digest_of(inputs.model, inputs.reference)
        before = models.trying(lambda: models.aliased(params.alias))
        found = models.trying(lambda: models.with_digest(digest))
        if found is None:
            folder = save(ctx, inputs.model, files, inputs.reference)
            tags = params.tags | {DIGEST: digest} | ({"commit": ctx.commit} if ctx.commit else {})
            experiment = params.experiment or params.name
            found = models.trying(lambda: models.register(folder, files, digest, experiment, tags))
        elif lost := models.trying(lambda: models.lost(found, files)):
            raise ConflictError(f"version {found.version} of {params.name} has this digest, but no {lost}",
                                fix="delete that version, then run again")  # fmt: skip
        models.trying(lambda: models.move(params.alias, before, str(found.version)))
        ctx.figure("digest", digest)
        return {"model": params.name, "alias": params.alias, "digest": digest}

    def findings(self, models: Models, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare the version and the alias with what the pipeline says."""
        files, digest = digest_of(inputs.model, inputs.reference)
        found = models.trying(lambda: models.with_digest(digest))
        lost = models.trying(lambda: models.lost(found, files)) if found else ""
        aliased = models.trying(lambda: models.aliased(params.alias))
        return [
            Finding("version", digest, f"no {lost}" if lost else digest if found else "missing"),
            Finding(
                "alias",
                digest,
                aliased.tags.get(DIGEST, f"version {aliased.version}") if aliased else "missing",
            ),
        ]

    def restore(self, models: Models, params: Params, to: str) -> str:
        """Move the alias to the version before, or to the one whose digest begins with `to`."""
        now = models.trying(lambda: models.aliased(params.alias))
        wanted = models.trying(lambda: models.matching(to) if to else models.previous(params.alias))
        if now is None or wanted is None or wanted.version == now.version:
            raise StageError(f"the alias {params.alias} of {params.name} has no previous version",
                             fix="specify a digest: --to DIGEST")  # fmt: skip
        models.trying(lambda: models.move(params.alias, now, str(wanted.version)))
        digest = wanted.tags[DIGEST][:_SHORT]
        return f"{params.alias} is version {wanted.version} ({digest}) instead of {now.version}"


def _server(target: Mapping[str, Any]) -> Any:
    found = target.get("mlflow")
    return found.get("tracking_uri") if isinstance(found, Mapping) else None
