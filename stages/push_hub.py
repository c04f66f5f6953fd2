"""`push.hub`: weights, ONNX models and a model card as one commit on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    ConflictError,
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
)

from . import _bundle, _onnx
from ._card import model_card, read_reports
from ._s3 import file_digest
from ._transcript import Transcript

_TRIES = 3


class PushHub(Stage):
    """Make one atomic commit on the Hub with all files, and read it back.

    Files that are there already don't travel; where all of them are, nothing is committed. The
    commit names its parent, so that somebody else's commit in between is never overwritten.
    """

    uses = "push.hub"
    packages = ("huggingface_hub",)
    extra = "hub"
    network = True
    services = ("hub",)
    converges = True

    class Params(StageParams):
        """Where to, and what the card says."""

        repo: str = Field(description="name, or namespace/name")
        private: bool = Field(False, description="make a new repository private")
        revision: str = Field("main", description="the branch to commit to")
        tag: str | None = Field(None, description="a tag to set on the commit")
        license: str = Field("other", description="the licence, as the Hub spells it")
        language: str | None = Field(None, description="the language, e.g. en")
        tags: list[str] = Field(default=[], description="further tags of the card")
        message: str = Field("Publish with deploy-runner", description="the commit's message")

    class Inputs(StageInputs):
        """What to publish."""

        weights: File | None = Field(None, description="weights.safetensors")
        models: dict[str, File | Folder] | None = Field(None, description="ONNX models by name")
        reports: dict[str, File] | None = Field(None, description="verify reports, for the card")
        reference: Folder | None = Field(None, description="the bundle, for config and usage")
        files: dict[str, File] | None = Field(None, description="further files by their path")

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every file, its digest, and the call")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Lay out, compare, commit what differs, read back."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        transcript = Transcript()
        try:
            repo = _full_name(api, ctx, params)
            files = _layout(ctx, params, inputs, repo)
            _converge(api, params, repo, files, transcript)
            if params.tag:
                _tag(api, params, repo, transcript)
            _read_back(api, params, repo, files, ctx.workdir / "download")
        except HfHubHTTPError as error:
            raise _plain_error(error) from error
        except (OSError, ValueError) as error:
            raise StageError(f"the Hub can't be used: {_bundle.first_line(error)}",
                             fix="export HF_TOKEN=…") from error  # fmt: skip
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):
                raise
            raise StageError(f"the Hub can't be reached: {_bundle.first_line(error)}") from error
        ctx.converged = not transcript.changed
        digests = {path: file_digest(file) for path, file in sorted(files.items())}
        ctx.figure("repo", repo)
        ctx.figure("files", len(files))
        ctx.figure("calls", transcript.calls)
        transcript.write(outputs.transcript, repo=repo, revision=params.revision, files=digests)


def _full_name(api: Any, ctx: Context, params: PushHub.Params) -> str:
    if "/" in params.repo:
        return params.repo
    hub = ctx.target.get("hub")
    namespace = hub.get("namespace") if isinstance(hub, dict) else None
    return f"{namespace or api.whoami()['name']}/{params.repo}"


def _layout(ctx: Context, params: PushHub.Params, inputs: PushHub.Inputs, repo: str) -> dict[str, Path]:
    """Return the repository's files: weights at the top, ONNX under onnx/, as its users expect."""
    files: dict[str, Path] = {}
    if inputs.weights is not None:
        files["model.safetensors"] = inputs.weights
    for name, model in (inputs.models or {}).items():
        files |= _onnx_files(name, model)
    files |= inputs.files or {}
    bundle = _bundle.load_bundle(inputs.reference) if inputs.reference else None
    if bundle is not None:
        config = ctx.workdir / "config.json"
        ports = {
            "inputs": [p.as_dict() for p in bundle.inputs],
            "outputs": [p.as_dict() for p in bundle.outputs],
        }
        config.write_text(json.dumps(ports, indent=2, sort_keys=True) + "\n", "utf-8")
        files["config.json"] = config
    if not files:
        raise StageError("there is nothing to publish", fix="give it weights, models or files")
    described = {path: (file.stat().st_size, file_digest(file)) for path, file in files.items()}
    card = ctx.workdir / "README.md"
    text = model_card(
        repo=repo, license_name=params.license, language=params.language, tags=params.tags,
        files=described, reports=read_reports(inputs.reports or {}), bundle=bundle,
    )  # fmt: skip
    card.write_text(text, "utf-8")
    files["README.md"] = card
    return files


def _onnx_files(name: str, model: Path) -> dict[str, Path]:
    file = _onnx.onnx_file(model)
    stem = re.sub(r"\W+", "_", name).strip("_")
    path = "onnx/model.onnx" if stem in ("model", "fp32") else f"onnx/model_{stem}.onnx"
    files = {path: file}
    if (data := file.with_name(_onnx.DATA_NAME)).is_file():
        if path != "onnx/model.onnx":
            raise StageError(
                f"the model {name!r} has external data, which keeps its name: publish it as `model`"
            )
        files[f"onnx/{_onnx.DATA_NAME}"] = data
    return files


def _converge(
    api: Any, params: PushHub.Params, repo: str, files: Mapping[str, Path], transcript: Transcript
) -> None:
    """Commit what differs. A commit in between is re-read; after three tries it is a conflict."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        api.repo_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=params.private, exist_ok=True)
        transcript.add("hub:create_repo", repo=repo, private=params.private)
    for attempt in range(_TRIES):
        head = api.repo_info(repo, revision=params.revision).sha
        changed = {p: f for p, f in files.items() if p in _different(api, repo, head, files)}
        if not changed:
            return
        operations = [CommitOperationAdd(path, str(file)) for path, file in sorted(changed.items())]
        try:
            api.create_commit(repo, operations, commit_message=params.message,
                              revision=params.revision, parent_commit=head)  # fmt: skip
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status != 412:
                raise
            if attempt == _TRIES - 1:
                raise ConflictError(f"{repo}@{params.revision} is being changed by somebody else",
                                    fix="run again") from error  # fmt: skip
            continue
        digests = {path: file_digest(file) for path, file in sorted(changed.items())}
        transcript.add("hub:create_commit", repo=repo, revision=params.revision,
                       message=params.message, files=digests)  # fmt: skip
        return


def _different(api: Any, repo: str, head: str, files: Mapping[str, Path]) -> set[str]:
    """Return the paths whose content on the Hub is not ours."""
    known = {info.path: info for info in api.get_paths_info(repo, sorted(files), revision=head)}
    return {path for path, file in files.items() if path not in known or not _same(known[path], file)}


def _same(info: Any, file: Path) -> bool:
    if info.size != file.stat().st_size:
        return False
    if info.lfs is not None:
        return bool(info.lfs.sha256 == file_digest(file))
    import hashlib

    data = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return bool(info.blob_id == blob)


def _tag(api: Any, params: PushHub.Params, repo: str, transcript: Transcript) -> None:
    head = api.repo_info(repo, revision=params.revision).sha
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if params.tag in tags:
        if tags[params.tag] != head:
            raise ConflictError(f"the tag {params.tag} of {repo} is on another commit", fix="use another tag")
        return
    api.create_tag(repo, tag=params.tag, revision=params.revision)
    transcript.add("hub:create_tag", repo=repo, tag=params.tag)


def _read_back(api: Any, params: PushHub.Params, repo: str, files: Mapping[str, Path], folder: Path) -> None:
    """Download every file of the commit and compare its digest."""
    head = api.repo_info(repo, revision=params.revision).sha
    for path, file in sorted(files.items()):
        found = api.hf_hub_download(repo, path, revision=head, local_dir=folder)
        if file_digest(Path(found)) != file_digest(file):
            raise StageError(f"{path} of {repo} was read back with another digest")


def _plain_error(error: Any) -> StageError | ConflictError:
    status = error.response.status_code if error.response is not None else 0
    said = getattr(error, "server_message", None) or _bundle.first_line(error)
    if status in (401, 403):
        return StageError(
            f"the Hub refuses these credentials: {said}", fix="export HF_TOKEN=… with write access"
        )
    if status == 409:
        return ConflictError(f"the Hub has a conflict: {said}")
    return StageError(f"the Hub answers {status}: {said}")
