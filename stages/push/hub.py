"""`push.hub`: weights, ONNX models and a model card as one commit on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Finding,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..model import bundles
from .backoff import Backoff
from .huggingface import layout, rollback, status
from .huggingface.card import Card, read_reports
from .huggingface.client import hub_client
from .huggingface.commit import Place, Push, ensure_branch, ensure_repo, ensure_tag
from .huggingface.content import MANIFEST, Wanted, describe, manifest
from .huggingface.errors import one_sentence
from .transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Mapping

_CARD = "README.md"


class PushHub(Stage):
    """Create one atomic commit on the Hub with all files, and read it back.

    Existing files are not uploaded again; if all exist, nothing is committed. The commit
    names its parent, and what somebody else has changed in our files is a conflict, never overwritten.
    """

    uses = "push.hub"
    packages = ("huggingface_hub",)
    extra = "hub"
    network = True
    services = ("hub",)
    converges = True
    lineage = True

    class Params(StageParams):
        """Where to, and what the card says."""

        repo: str = Field(description="name, or namespace/name")
        private: bool = Field(False, description="create the repository as private; fail if it is public")
        revision: str = Field("main", description="the branch to commit to; it is created from main")
        tag: str | None = Field(None, description="a tag to set on the commit")
        pull_request: bool = Field(False, description="propose the commit as a pull request to the branch")
        overwrite: bool = Field(False, description="overwrite files that others have added or changed")
        license: str = Field("other", description="the licence, by its identifier on the Hub")
        language: str | None = Field(None, description="the language, e.g. en")
        tags: list[str] = Field(default=[], description="additional tags of the card")
        pipeline_tag: str | None = Field(None, description="the task, e.g. image-classification")
        dataset: str = Field("held-out samples", description="the data on which the accuracy was measured")
        message: str = Field(
            "Publish with deploy-runner", description="the title of the commit or pull request"
        )

    class Inputs(StageInputs):
        """What to publish."""

        weights: File | None = Field(None, description="weights.safetensors")
        models: dict[str, File | Folder] | None = Field(
            None, description="ONNX models by precision: fp32, fp16, int8, uint8, quantized, q4…"
        )
        reports: dict[str, File] | None = Field(None, description="verify reports, for the card")
        reference: Folder | None = Field(None, description="the bundle, for config.json and usage")
        files: dict[str, File] | None = Field(
            None, description="additional files by their path; a README.md replaces the card"
        )

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every file, its digest, and the call")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Lay out, compare, commit what differs, read back."""
        if params.pull_request and params.tag:
            raise StageError("a pull request has no commit on the branch and can't be tagged",
                             fix="remove `tag` or `pull_request`")  # fmt: skip
        transcript, backoff = Transcript(), Backoff(log=ctx.log)
        with _hub(ctx, params, backoff) as (api, repo):
            files = _files(ctx, params, inputs, repo)
            ensure_repo(api, repo, transcript, private=params.private)
            ensure_branch(api, repo, params.revision, transcript)
            push = Push(
                api, repo, params.revision, files, params.message, _description(ctx), backoff, transcript,
                ctx.log, as_pull=params.pull_request, overwrite=params.overwrite,
            )  # fmt: skip
            place = push.converge()
            if params.tag:
                ensure_tag(push, params.tag, place)
        ctx.converged = not transcript.changed
        _report(ctx, push, place)
        digests = {path: file.sha256 for path, file in files.items()}
        transcript.write(outputs.transcript, repo=repo, revision=place.revision, files=digests)

    def status(self, ctx: Context, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare the branch, the tag and the visibility with what is wanted."""
        with _hub(ctx, params, Backoff(log=ctx.log)) as (api, repo):
            files = _files(ctx, params, inputs, repo)
            asked = status.Asked(repo, params.revision, params.tag, params.private, params.message)
            return status.findings(api, asked, files)

    def rollback(self, ctx: Context, params: Params, to: str) -> str:
        """Bring the branch back to what was pushed before, by a new commit."""
        backoff = Backoff(log=ctx.log)
        with _hub(ctx, params, backoff) as (api, repo):
            return rollback.roll_back(api, repo, params.revision, to, _description(ctx))


@contextmanager
def _hub(ctx: Context, params: PushHub.Params, backoff: Backoff) -> Iterator[tuple[Any, str]]:
    """Yield the client and the repository's full name. Raises one sentence, whatever goes wrong."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    with one_sentence(params.repo), hub_client(ctx, backoff) as api:
        if get_token() is None:
            raise StageError("no Hub token was found", fix="export HF_TOKEN=… with write access")
        hub = ctx.target.get("hub")
        namespace = hub.get("namespace") if isinstance(hub, dict) else None
        repo = params.repo
        if "/" not in repo:
            repo = f"{namespace or api.whoami(cache=True)['name']}/{repo}"
        validate_repo_id(repo)
        with one_sentence(repo):
            yield api, repo


def _files(ctx: Context, params: PushHub.Params, inputs: PushHub.Inputs, repo: str) -> dict[str, Wanted]:
    """Return what the repository is to hold, the card and the manifest included."""
    bundle = bundles.load_bundle(inputs.reference) if inputs.reference else None
    paths: dict[str, Path] = layout.onnx_files(inputs.models or {}, ctx.workdir)
    if inputs.weights is not None:
        paths["model.safetensors"] = inputs.weights
    if bundle is not None:
        paths["config.json"] = layout.config(bundle, ctx.workdir)
    paths |= layout.further_files(inputs.files or {})
    if not paths:
        raise StageError("there is nothing to publish", fix="set weights, models or files")
    files = describe(paths, _known_digests(ctx, inputs))
    if _CARD not in files:
        card = Card(
            repo, files, read_reports(inputs.reports or {}), bundle, ctx.lineage, params.license,
            params.language, params.tags, params.pipeline_tag, params.dataset, _loaded(params),
        )  # fmt: skip
        files |= _written(ctx, _CARD, card.text().encode())
    return files | _written(ctx, MANIFEST, manifest(files))


def _loaded(params: PushHub.Params) -> str | None:
    """Return the revision that the card's snippets name: the tag, or a branch that isn't main."""
    return params.tag or (params.revision if params.revision != "main" else None)


def _written(ctx: Context, name: str, data: bytes) -> dict[str, Wanted]:
    path = ctx.workdir / name
    path.write_bytes(data)
    return describe({name: path}, {})


def _known_digests(ctx: Context, inputs: PushHub.Inputs) -> Mapping[Path, str]:
    """Return the digests that the runner has computed already, by the path of the file."""
    found = {inputs.weights: ctx.digests.get("weights", "")} if inputs.weights else {}
    for group in ("models", "files"):
        for name, path in (getattr(inputs, group) or {}).items():
            found[path] = ctx.digests.get(f"{group}/{name}", "")
    return found


def _description(ctx: Context) -> str:
    """Return the commit's description: which stage, run and commit of the source it comes from."""
    rows = {"Stage": ctx.stage, "Run": ctx.run, "Source-Commit": ctx.commit}
    return "\n".join(f"{name}: {value}" for name, value in rows.items() if value)


def _report(ctx: Context, push: Push, place: Place) -> None:
    ctx.figure("repo", push.repo)
    ctx.figure("revision", place.revision)
    ctx.figure("commit", place.sha)
    ctx.figure("digest", push.files[MANIFEST].sha256)
    ctx.figure("files", len(push.files))
    ctx.figure("calls", push.transcript.calls)
