"""`push.hub`: weights, ONNX models and a model card as one commit on the Hugging Face Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self

from pydantic import model_validator

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Finding,
    Folder,
    Output,
    StageInputs,
    StageParams,
    judged,
)

from .backoff import Backoff
from .converging import Push
from .huggingface import names, rollback, status
from .huggingface.assembled import CARD, assemble
from .huggingface.client import Hub, hub_client, require_token
from .huggingface.commit import Commit, ensure_branch, ensure_repo, ensure_tag
from .huggingface.content import MANIFEST
from .huggingface.errors import one_sentence
from .huggingface.metadata import Benchmark
from .transcript import Transcript

_Repository = Annotated[str, judged(names.repository)]
_Branch = Annotated[str, judged(names.branch)]
_Tag = Annotated[str, judged(names.tag)]
_Language = Annotated[str, judged(names.language)]


class PushHub(Push):
    """Create one atomic commit on the Hub with all files, and read it back.

    Existing files are not uploaded again; if all exist, nothing is committed. The commit names its
    parent. If somebody else has changed our files, that is a conflict, and nothing is overwritten.
    """

    uses = "push.hub"
    packages = ("huggingface_hub", "onnxruntime")
    extra = "hub"
    services = ("hub",)
    lineage = True

    class Params(StageParams):
        """Where to, and what the card says."""

        repo: _Repository = Field(description="name, or namespace/name")
        private: bool = Field(False, description="create the repository as private; fail if it is public")
        revision: _Branch = Field("main", description="the branch to commit to; it is created from main")
        tag: _Tag | None = Field(None, description="a tag to set on the commit")
        pull_request: bool = Field(False, description="propose the commit as a pull request to the branch")
        overwrite: bool = Field(False, description="overwrite files that others have added or changed")
        license: str = Field("other", description="the licence, by its identifier on the Hub")
        language: _Language | None = Field(None, description="the language by its code of ISO 639, e.g. en")
        tags: list[str] = Field(default=[], description="additional tags of the card")
        pipeline_tag: str | None = Field(None, description="the task, e.g. image-classification")
        examples: list[str] = Field(
            default=[], description="examples for the page's widget: texts, or the paths of pictures or of "
            "sounds among the files",
        )  # fmt: skip
        benchmark: Benchmark | None = Field(
            None, description="the benchmark of the Hub on whose leaderboard the accuracy is to appear"
        )
        handler: str | None = Field(
            None, description="the one of `models` that an Inference Endpoint is to run: adds handler.py"
        )
        dataset: str = Field("held-out samples", description="the data on which the accuracy was measured")
        message: str = Field(
            "Publish with deploy-runner", description="the title of the commit or pull request"
        )

        @model_validator(mode="after")
        def _either(self) -> Self:
            if self.pull_request and self.tag:
                raise ValueError("a pull request has no commit on the branch and can't be tagged: remove "
                                 "`tag` or `pull_request`")  # fmt: skip
            return self

    class Inputs(StageInputs):
        """What to publish."""

        weights: File | None = Field(None, description="weights.safetensors")
        models: dict[str, File | Folder] | None = Field(
            None, description="ONNX models by precision: fp32, fp16, int8, uint8, quantized, q4…"
        )
        reports: dict[str, File] | None = Field(None, description="verify reports, for the card")
        reference: Folder | None = Field(None, description="the bundle, for config.json and usage")
        folder: Folder | None = Field(
            None, description="the folder that model.transformers has read, for its config, tokenizer, "
            "preprocessor and weights",
        )  # fmt: skip
        io: Folder | None = Field(
            None,
            description="the output of model.io: below io/, its labels in config.json, its task in the card",
        )
        files: dict[str, File] | None = Field(
            None, description="additional files by their path; a README.md replaces the card"
        )

    class Outputs(Push.Outputs):
        """The transcript, and the card."""

        card: File = Output(
            CARD, "the model card, as it was pushed: read that of a dry run before it goes live"
        )

    def check_target(
        self, params: Mapping[str, Any], target: Mapping[str, Any], environ: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return what the Hub would refuse of the namespace; without one it is that of the token."""
        repo, namespace = params.get("repo"), _namespace(target)
        if not isinstance(repo, str) or "/" in repo or not namespace:
            return {}
        try:
            names.repository(f"{namespace}/{repo}")
        except ValueError as error:
            return {"hub.namespace": str(error)}
        return {}

    @contextmanager
    def service(self, ctx: Context, params: Params, backoff: Backoff) -> Iterator[Hub]:
        """Yield the Hub, with the repository's full name."""
        from huggingface_hub.utils import validate_repo_id

        with one_sentence(params.repo), hub_client(ctx, backoff) as api:
            require_token()
            namespace = _namespace(ctx.target)
            repo = params.repo
            if "/" not in repo:
                repo = f"{namespace or api.whoami(cache=True)['name']}/{repo}"
            validate_repo_id(repo)
            with one_sentence(repo):
                yield Hub(ctx=ctx, backoff=backoff, transcript=Transcript(), api=api, repo=repo)

    def converge(self, hub: Hub, params: Params, inputs: Inputs, outputs: Any) -> dict[str, Any]:
        """Lay out, compare, commit what differs, read back."""
        files = assemble(hub.ctx, params, inputs, hub.repo)
        shutil.copyfile(files[CARD].path, outputs.card)
        hub.ctx.log(f"the model card: deploy-runner get {hub.ctx.stage}.card")
        ensure_repo(hub, private=params.private)
        ensure_branch(hub, params.revision)
        commit = Commit(
            hub, params.revision, files, params.message, _description(hub.ctx),
            as_pull=params.pull_request, overwrite=params.overwrite,
        )  # fmt: skip
        place = commit.converge()
        if params.tag:
            ensure_tag(commit, params.tag, place)
        hub.ctx.figure("repo", hub.repo)
        hub.ctx.figure("revision", place.revision)
        hub.ctx.figure("commit", place.sha)
        hub.ctx.figure("digest", files[MANIFEST].sha256)
        hub.ctx.figure("files", len(files))
        digests = {path: file.sha256 for path, file in files.items()}
        return {"repo": hub.repo, "revision": place.revision, "files": digests}

    def credentials(self, ctx: Context, params: Params) -> str:
        """Say that a Hub token was found."""
        with one_sentence(params.repo):
            require_token()
        return "a Hub token was found"

    def findings(self, hub: Hub, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare the branch, the tag and the visibility with what is wanted."""
        files = assemble(hub.ctx, params, inputs, hub.repo)
        asked = status.Asked(hub.repo, params.revision, params.tag, params.private, params.message)
        return status.findings(hub.api, asked, files)

    def restore(self, hub: Hub, params: Params, to: str) -> str:
        """Bring the branch back to what was pushed before, by a new commit."""
        return rollback.roll_back(hub.api, hub.repo, params.revision, to, _description(hub.ctx))


def _description(ctx: Context) -> str:
    """Return the commit's description: which stage, run and commit of the source it comes from."""
    rows = {"Stage": ctx.stage, "Run": ctx.run, "Source-Commit": ctx.commit}
    return "\n".join(f"{name}: {value}" for name, value in rows.items() if value)


def _namespace(target: Mapping[str, Any]) -> str:
    hub = target.get("hub")
    return str(hub.get("namespace") or "") if isinstance(hub, Mapping) else ""
