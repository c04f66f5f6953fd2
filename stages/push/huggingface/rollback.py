"""Move a branch of the Hub back to what was pushed before, by a new commit; nothing large is uploaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from deploy_runner.sdk import ConflictError, StageError

from .client import UnansweredError
from .content import MANIFEST, Revision
from .errors import status_of

_TRIES = 3
_SHOWN = 12


class Version(NamedTuple):
    """What a push has added: the digest of its manifest, at the newest commit that has it."""

    digest: str
    there: Revision


def roll_back(api: Any, repo: str, revision: str, to: str, description: str) -> str:
    """Bring back the version before, or the one whose digest or commit begins with `to`; say which.

    Raises StageError where there is none, ConflictError where somebody else has changed our files.
    """
    for tried in range(1, _TRIES + 1):
        current, target = _choose(versions(api, repo, revision), repo, to)
        shown = f"{repo}@{revision}: {target.digest[:_SHOWN]} of commit {target.there.sha[:_SHOWN]}"
        if current.digest == target.digest:
            return f"{shown} is already current"
        _refuse_foreign(current.there, repo)
        try:
            made = _commit(api, repo, revision, current.there, target, description)
        except UnansweredError:
            continue
        except Exception as error:
            if status_of(error) != 412 or tried == _TRIES:
                raise
        else:
            return f"{shown} is restored as commit {made[:_SHOWN]}"
    raise ConflictError(f"{repo}@{revision} is being changed by someone else, or doesn't respond",
                        fix="check `deploy-runner status`, then run it again")  # fmt: skip


def versions(api: Any, repo: str, revision: str) -> Iterator[Version]:
    """Yield what pushes have put on a branch, the newest first, each once."""
    seen: set[str] = set()
    for commit in api.list_repo_commits(repo, revision=revision):
        there = Revision(api, repo, commit.commit_id)
        digest = there.digest(MANIFEST) if there.known() else ""
        if digest and digest not in seen:
            seen.add(digest)
            yield Version(digest, there)


def _choose(found: Iterator[Version], repo: str, to: str) -> tuple[Version, Version]:
    current = next(found, None)
    if current is None:
        raise StageError(f"nothing on {repo} was pushed by deploy-runner", fix="run the pipeline first")
    if to and any(name.startswith(to) for name in (current.digest, current.there.sha)):
        return current, current
    seen = [current.digest[:_SHOWN]]
    for version in found:
        if not to or version.digest.startswith(to) or version.there.sha.startswith(to):
            return current, version
        seen.append(version.digest[:_SHOWN])
    what = f"{to} was never pushed to {repo}" if to else f"nothing was pushed to {repo} before"
    raise StageError(what, fix=f"pushed digests: {', '.join(seen)}")


def _refuse_foreign(there: Revision, repo: str) -> None:
    known = there.known()
    there.info(list(known))
    foreign = [path for path, digest in known.items() if there.digest(path) not in ("", digest)]
    if foreign:
        raise ConflictError(f"{', '.join(foreign[:3])} of {repo} was changed by someone else",
                            fix="run the pipeline with `overwrite: true`, or fix it on the Hub")  # fmt: skip


def _commit(api: Any, repo: str, revision: str, there: Revision, target: Version, description: str) -> str:
    """Copy the files of a version onto the head, and delete those of ours that it didn't have."""
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete

    old = [*target.there.known(), MANIFEST]
    there.info(old)
    target.there.info(old)
    operations: list[Any] = [
        CommitOperationCopy(path, path, src_revision=target.there.sha)
        for path in old
        if there.identity(path) != target.there.identity(path)
    ]
    gone = [path for path in there.known() if path not in old and there.identity(path)]
    operations += [CommitOperationDelete(path) for path in gone]
    made = api.create_commit(
        repo, operations, commit_message=f"Roll back to {target.digest[:_SHOWN]}",
        commit_description=description, revision=revision, parent_commit=there.sha,
    )  # fmt: skip
    return str(made.oid)
