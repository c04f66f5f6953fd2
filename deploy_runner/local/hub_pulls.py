"""Commits and pull requests of the local Hub."""

from __future__ import annotations

import json
from typing import Any

from .hub_http import HubHandler, route
from .hub_state import HubError, Pull, Repo

__all__ = ["PullHandler"]

_PAGE = 10
_DISCUSSION = r"/api/{repo}/discussions/(?P<number>\d+)"


class PullHandler(HubHandler):
    """Answers what concerns commits and pull requests."""

    def _proposable(self, kind: str, repo: str) -> Repo:
        """Return a repository that may be written to, or that a pull request may be opened for."""
        if self._query.get("create_pr", ["0"])[0] == "1":
            self._require_token()
            return self._repo(kind, repo)
        return self._writable(kind, repo)

    @route("POST", "/api/{repo}/commit/(?P<revision>.+)")
    def _commit(self, kind: str, repo: str, revision: str) -> None:
        try:
            operations = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        except ValueError:
            raise HubError(400, "The commit is not ndjson") from None
        found, author = self._proposable(kind, repo), self._require_token().user
        create = self._query.get("create_pr", ["0"])[0] == "1"
        made, number = self.hub.state.commit(found, revision, operations, create_pull=create, author=author)
        answer: dict[str, Any] = {"success": True, "commitOid": made.id}
        answer["commitUrl"] = f"{self._url}/{repo}/commit/{made.id}"
        if number:
            answer["pullRequestUrl"] = f"{self._url}/{repo}/discussions/{number}"
        self._json(answer)

    @route("GET", "/api/{repo}/discussions")
    def _discussions(self, kind: str, repo: str) -> None:
        found = self._repo(kind, repo)
        wanted = {name: self._query.get(name, [""])[0] for name in ("status", "author", "type")}
        rows = [
            _described(found, pull)
            for pull in reversed(found.pulls.values())
            if wanted["status"] in ("", "all", pull.status)
            and wanted["author"] in ("", pull.author)
            and wanted["type"] in ("", "all", "pull_request")
        ]
        start = int(self._query.get("p", ["0"])[0]) * _PAGE
        self._json({"discussions": rows[start : start + _PAGE], "count": len(rows), "start": start})

    @route("POST", "/api/{repo}/discussions")
    def _open(self, kind: str, repo: str) -> None:
        author, body = self._require_token().user, self._json_body()
        if not body.get("pullRequest"):
            raise HubError(400, "This Hub has pull requests, and no other discussions")
        number = self.hub.state.open_pull(self._repo(kind, repo), body.get("title", ""), author)
        url = f"{self._url}/{repo}/discussions/{number}"
        self._json({"num": number, "url": url, "pullRequest": True})

    @route("GET", _DISCUSSION)
    def _discussion(self, kind: str, repo: str, number: str) -> None:
        found = self._repo(kind, repo)
        self._json(_detailed(found, self.hub.state.pull(found, int(number))))

    @route("POST", f"{_DISCUSSION}/merge")
    def _merge(self, kind: str, repo: str, number: str) -> None:
        self._body()
        self.hub.state.merge(self._writable(kind, repo), int(number))
        self._json({"success": True})

    @route("POST", f"{_DISCUSSION}/status")
    def _status(self, kind: str, repo: str, number: str) -> None:
        status, found = self._json_body().get("status", ""), self._repo(kind, repo)
        if self.hub.state.pull(found, int(number)).author != self._require_token().user:
            self._writable(kind, repo)
        if status not in ("open", "closed"):
            raise HubError(400, "Invalid status")
        pull = self.hub.state.set_pull_status(found, int(number), status)
        event = {"type": "status-change", "data": {"status": status}}
        self._json({"newStatus": {**_event(pull, "1"), **event}})


def _described(repo: Repo, pull: Pull) -> dict[str, Any]:
    return {
        "num": pull.number, "title": pull.title, "author": {"name": pull.author}, "status": pull.status,
        "createdAt": pull.date, "isPullRequest": True, "repo": {"name": repo.id, "type": repo.kind[:-1]},
    }  # fmt: skip


def _detailed(repo: Repo, pull: Pull) -> dict[str, Any]:
    changes = {"base": f"refs/heads/{pull.base}"}
    if pull.merged:
        changes["mergeCommitId"] = pull.merged
    data = {"subject": pull.title, "oid": pull.head}
    return {
        **_described(repo, pull), "changes": changes, "filesWithConflicts": [],
        "events": [{**_event(pull, "0"), "type": "commit", "data": data}],
    }  # fmt: skip


def _event(pull: Pull, id_: str) -> dict[str, Any]:
    return {"id": id_, "createdAt": pull.date, "author": {"name": pull.author}}
