"""What the Hub takes as a repository's name, a branch, a tag, a language: judged before anything is run.

The rules of repositories are huggingface_hub's own (`validate_repo_id`, which is asked again at run time),
those of branches and tags git's (https://git-scm.com/docs/git-check-ref-format), of languages the Hub's:
https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

import re

__all__ = ["branch", "language", "repository", "tag"]

_REPOSITORY = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
_PULL = re.compile(r"refs/pr/\d+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_REFERENCE = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|\Z)|\A[-/.]|[/.]\Z|\A@?\Z")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def repository(name: str) -> str:
    """Return a repository's name. Raises ValueError for one that the Hub refuses."""
    for wrong, rule in (
        (name.count("/") > 1, "it is `name` or `namespace/name`"),
        (not _REPOSITORY.fullmatch(name), "its parts have up to 96 of `a-z`, `A-Z`, `0-9`, `-`, `_`, `.` and "
                                          "don't begin or end with `-` or `.`"),
        ("--" in name or ".." in name, "it may not contain `--` or `..`"),
        (name.endswith(".git"), "it may not end with `.git`"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(f"{name[:120]!r} is not a valid repository name on the Hub: {rule}")
    return name


def branch(name: str) -> str:
    """Return a branch's name. Raises ValueError for a pull request, a commit, and what git refuses."""
    if _PULL.fullmatch(name):
        raise ValueError(
            f"{name!r} is a pull request, not a branch: `pull_request: true` updates the open one "
            "of the same `message`"
        )
    if _COMMIT.fullmatch(name):
        raise ValueError(f"{name!r} is a commit, not a branch: nothing can be added to it")
    return _reference(name, "branch")


def tag(name: str) -> str:
    """Return a tag's name. Raises ValueError for one that git refuses, or that reads as a commit."""
    if _COMMIT.fullmatch(name):
        raise ValueError(f"{name!r} is a commit, not a tag")
    return _reference(name, "tag")


def _reference(name: str, kind: str) -> str:
    if name.startswith("refs/"):
        raise ValueError(f"{name!r} is a full reference: write the name of the {kind} alone")
    if _NO_REFERENCE.search(name):
        raise ValueError(f"{name!r} is not a valid name of a {kind} in git")
    return name


def language(code: str) -> str:
    """Return a language's code. Raises ValueError for one that the Hub refuses."""
    if not _LANGUAGE.fullmatch(code):
        short = re.split(r"[-_]", code)[0].lower()
        hint = f", e.g. `{short}`" if short != code and _LANGUAGE.fullmatch(short) else ""
        raise ValueError(
            f"{code!r} is not a language on the Hub: it is a code of ISO 639 in two or three small letters"
            f"{hint}, `code` or `multilingual`"
        )
    return code
