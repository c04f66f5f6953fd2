"""Bring a repository of the Hub to what is wanted: one commit at most, whatever the network does.

Read, compare, commit on top of what was read, and begin again where that got no answer, or where
somebody else was quicker: a commit of ours that has happened is then found, not made twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy_runner.sdk import ConflictError, StageError, counted

from .client import Hub, UnansweredError
from .content import MANIFEST, Decision, Revision, Wanted, decide
from .errors import root, status_of

_TRIES = 3
_MOVED = frozenset({404, 409, 410, 412})
"""What the Hub says when something was changed, or done already, since it was read."""


class Place(NamedTuple):
    """Where a commit goes: a branch or a pull request (`refs/pr/1`), or a new pull request."""

    revision: str
    sha: str
    opens_pull: bool = False


@dataclass(slots=True)
class Commit:
    """One commit at most, of `files` by path; `title` and `description` are its own."""

    hub: Hub
    revision: str
    files: Mapping[str, Wanted]
    title: str
    description: str
    as_pull: bool = False
    overwrite: bool = False
    _first: dict[str, dict[str, str]] = field(default_factory=dict)
    _opens: bool = False

    def converge(self) -> Place:
        """Commit what differs, and return where all of it now is.

        Raises ConflictError where somebody else has changed a file that is to be written.
        """
        pending: Decision | None = None
        for tried in range(1, 1_000_000):
            place = self._place()
            there = Revision(self.hub.api, self.hub.repo, place.sha)
            decision = decide(there, self.files)
            if decision.empty:
                if pending is not None:
                    self._note(pending, place)
                return place
            self._refuse_foreign(place, there, decision)
            try:
                made = self._commit(place, decision)
            except UnansweredError as error:
                pending = decision
                self._wait(tried, error)
            except Exception as error:
                if status_of(root(error)) not in _MOVED:
                    raise
                self._again(tried, error)
            else:
                self._note(decision, made)
                if not place.opens_pull or self._is_first(made):
                    return self._checked(made)
        raise AssertionError

    def _place(self) -> Place:
        head = Place(self.revision, self.hub.api.repo_info(self.hub.repo, revision=self.revision).sha)
        if not self.as_pull or decide(Revision(self.hub.api, self.hub.repo, head.sha), self.files).empty:
            return head
        pulls = own_pulls(self.hub.api, self.hub.repo, self.title)
        if not pulls:
            self._opens = True
            return head._replace(opens_pull=True)
        if self._opens:
            self._close_ours(pulls[1:])
        return pulls[0]

    def _is_first(self, made: Place) -> bool:
        """Say whether no push at the same moment was quicker to open a pull request: that one is used."""
        pulls = own_pulls(self.hub.api, self.hub.repo, self.title)
        return not pulls or pulls[0].revision == made.revision

    def _close_ours(self, pulls: Sequence[Place]) -> None:
        """Close what this push has opened beside the first pull request; by its content, as its
        number isn't known where the answer was lost."""
        for pull in pulls:
            if not decide(Revision(self.hub.api, self.hub.repo, pull.sha), self.files).empty:
                continue
            number = int(pull.revision.rpartition("/")[2])
            self.hub.api.change_discussion_status(self.hub.repo, number, "closed")
            self.hub.transcript.add("hub:close_pull_request", repo=self.hub.repo, revision=pull.revision)

    def _refuse_foreign(self, place: Place, there: Revision, decision: Decision) -> None:
        """Stop if a commit would replace what someone else has added."""
        before = self._first.setdefault(place.revision, {p: there.identity(p) for p in self.files})
        moved = [path for path in decision.add if there.identity(path) != before[path]]
        if moved:
            said = f"{_some(moved)} of {self.hub.repo} was changed by someone else during the push"
            raise ConflictError(said, fix="review the change, then run again")
        if decision.foreign and not (self.overwrite or place.opens_pull):
            raise ConflictError(
                f"{_some(decision.foreign)} of {self.hub.repo}@{place.revision} was added or changed by "
                "someone else",
                fix="set `pull_request: true` to propose yours, or `overwrite: true` to replace it",
            )

    def _commit(self, place: Place, decision: Decision) -> Place:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(path) for path in decision.delete]
        for path in decision.add:
            operation = CommitOperationAdd(path, str(self.files[path].path))
            operation.upload_info.sha256 = bytes.fromhex(self.files[path].sha256)
            operations.append(operation)
        sizes = sum(self.files[path].size for path in decision.add)
        differ = counted(len(decision.add), "different file")
        self.hub.ctx.log(f"{self.hub.repo}@{place.revision}: {differ}, {counted(sizes, 'byte')}")
        made = self.hub.api.create_commit(
            self.hub.repo, operations, commit_message=self.title, commit_description=self.description,
            revision=place.revision, parent_commit=place.sha, create_pr=place.opens_pull,
        )  # fmt: skip
        return Place(made.pr_revision or place.revision, made.oid)

    def _wait(self, tried: int, error: UnansweredError) -> None:
        if not self.hub.backoff.wait(tried, f"no response to the commit ({error})", error.retry_after):
            raise StageError(f"the Hub didn't respond to the commit: {error}; gave up after {tried} attempts",
                             fix="run again: if the commit succeeded, it is found") from error  # fmt: skip

    def _again(self, tried: int, error: Exception) -> None:
        if tried >= _TRIES:
            raise ConflictError(f"{self.hub.repo}@{self.revision} is being changed by someone else",
                                fix="run again") from error  # fmt: skip
        self.hub.ctx.log(f"{self.hub.repo}@{self.revision} changed since it was read; reading again")

    def _checked(self, made: Place) -> Place:
        left = decide(Revision(self.hub.api, self.hub.repo, made.sha), self.files)
        if not left.empty:
            raise StageError(f"{_some(left.add)} of {self.hub.repo} has a different digest when read back")
        return made

    def _note(self, decision: Decision, place: Place) -> None:
        files = {path: self.files[path].sha256 for path in decision.add}
        kind = "hub:create_pull_request" if place.revision.startswith("refs/pr/") else "hub:create_commit"
        self.hub.transcript.add(kind, repo=self.hub.repo, revision=place.revision, message=self.title,
                            files=files, deleted=list(decision.delete))  # fmt: skip


def own_pulls(api: Any, repo: str, title: str) -> list[Place]:
    """Return the open pull requests of this token's user with a title, the oldest first."""
    user = api.whoami(cache=True)["name"]
    numbers = [
        found.num
        for found in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open")
        if found.title == title and found.author == user
    ]
    return [
        Place(revision := f"refs/pr/{number}", api.repo_info(repo, revision=revision).sha)
        for number in sorted(numbers)
    ]


def ensure_repo(hub: Hub, *, private: bool) -> None:
    """Make sure of a repository. Raises ConflictError where it is public and mustn't be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    for _ in range(_TRIES):
        try:
            found = hub.api.repo_info(hub.repo)
        except RepositoryNotFoundError as error:
            if status_of(error) != 404 and "not found" not in str(error.server_message).lower():
                raise
        else:
            if private and not found.private:
                raise ConflictError(f"{hub.repo} already exists and is public",
                                    fix="make it private on the Hub, or set `private: false`")  # fmt: skip
            return
        if _create_repo(hub, private=private):
            hub.transcript.add("hub:create_repo", repo=hub.repo, private=private)
    raise StageError(f"{hub.repo} already exists, but this token has no read access to it",
                     fix="use a token with read access, or another name")  # fmt: skip


def _create_repo(hub: Hub, *, private: bool) -> bool:
    """Make a repository; False where the Hub says that there is one."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hub.api.create_repo(hub.repo, private=private)
    except HfHubHTTPError as error:
        if status_of(error) not in (409, 412):
            raise
        return False
    return True


def ensure_branch(hub: Hub, branch: str) -> None:
    """Make sure of a branch, which begins at the head of main. Raises StageError for a tag."""
    for tried in range(1, _TRIES + 1):
        refs = hub.api.list_repo_refs(hub.repo)
        if branch in [ref.name for ref in refs.branches]:
            return
        if branch in [ref.name for ref in refs.tags]:
            raise StageError(f"{branch} is a tag of {hub.repo}, not a branch",
                             fix="set `revision` to a branch, and `tag` to the tag")  # fmt: skip
        try:
            hub.api.create_branch(hub.repo, branch=branch)
        except Exception as error:
            if status_of(error) not in (409, 412) or tried == _TRIES:
                raise
        else:
            hub.transcript.add("hub:create_branch", repo=hub.repo, branch=branch)


def ensure_tag(commit: Commit, tag: str, place: Place) -> None:
    """Set a tag on a commit of ours. Raises ConflictError where it is on something else."""
    hub = commit.hub
    for tried in range(1, _TRIES + 1):
        known = {ref.name: ref.target_commit for ref in hub.api.list_repo_refs(hub.repo).tags}
        if tag in known:
            if not decide(Revision(hub.api, hub.repo, known[tag]), commit.files).empty:
                raise ConflictError(f"the tag {tag} of {hub.repo} points to different content",
                                    fix="use another tag")  # fmt: skip
            return
        try:
            hub.api.create_tag(hub.repo, tag=tag, revision=place.sha)
        except Exception as error:
            if status_of(error) not in (409, 412) or tried == _TRIES:
                raise
        else:
            hub.transcript.add("hub:create_tag", repo=hub.repo, tag=tag)


def _some(paths: Sequence[str], limit: int = 3) -> str:
    shown = [path for path in paths if path != MANIFEST] or list(paths)
    rest = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + rest
