"""Say what a repository of the Hub has beside what is wanted; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from deploy_runner.sdk import Finding

from .commit import own_pulls
from .content import MANIFEST, Revision, Wanted, decide

_SHOWN = 12


class Asked(NamedTuple):
    """What a status is asked of."""

    repo: str
    revision: str
    tag: str | None
    private: bool
    title: str


def findings(api: Any, asked: Asked, files: Mapping[str, Wanted]) -> list[Finding]:
    """Return the repository, each file of ours, and the tag, wanted and found."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.repo_info(asked.repo)
    except RepositoryNotFoundError:
        return [Finding("repository", asked.repo, "missing")]
    rows = [Finding("repository", asked.repo, asked.repo)]
    if asked.private:
        rows.append(Finding("visibility", "private", "private" if info.private else "public"))
    try:
        sha = api.repo_info(asked.repo, revision=asked.revision).sha
    except RevisionNotFoundError:
        return [*rows, Finding("branch", asked.revision, "missing")]
    there = Revision(api, asked.repo, sha)
    rows += _files(there, files)
    if not decide(there, files).empty:
        rows += _pulls(api, asked, files)
    return rows + (_tag(api, asked, files) if asked.tag else [])


def _files(there: Revision, files: Mapping[str, Wanted]) -> list[Finding]:
    there.info([*files, MANIFEST])
    rows = []
    for path, wanted in files.items():
        expected = wanted.sha256[:_SHOWN]
        same = there.holds(path, wanted)
        rows.append(Finding(path, expected, expected if same else there.digest(path)[:_SHOWN] or "missing"))
    stale = [path for path in there.known() if path not in files and there.identity(path)]
    return rows + [Finding(path, "none", there.digest(path)[:_SHOWN]) for path in stale]


def _pulls(api: Any, asked: Asked, files: Mapping[str, Wanted]) -> list[Finding]:
    open_ = [
        pull.revision
        for pull in own_pulls(api, asked.repo, asked.title)
        if decide(Revision(api, asked.repo, pull.sha), files).empty
    ]
    return [Finding("pull request", "merged", f"{revision} is open") for revision in open_]


def _tag(api: Any, asked: Asked, files: Mapping[str, Wanted]) -> list[Finding]:
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(asked.repo).tags}
    wanted = files[MANIFEST].sha256[:_SHOWN]
    if asked.tag not in tags:
        return [Finding(f"tag {asked.tag}", wanted, "missing")]
    there = Revision(api, asked.repo, tags[asked.tag])
    return [Finding(f"tag {asked.tag}", wanted, there.digest(MANIFEST)[:_SHOWN] or "different content")]
