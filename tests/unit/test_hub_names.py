"""Names of the Hub, judged when a pipeline is validated, beside what huggingface_hub says of them."""

from __future__ import annotations

import subprocess

import pytest
from pydantic import ValidationError

from tests.bundles import stage

PULL = "'refs/pr/7' is a pull request, not a branch: `pull_request: true` updates the open one"


def judged(**params: str | bool) -> str:
    """Return what is wrong with these parameters; nothing where all is well."""
    try:
        stage("push.hub").Params.model_validate({"repo": "digits", **params})
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return ""


@pytest.mark.parametrize(
    "name",
    ["digits", "my-org/digits_2.0", "123", "a/b/c", "a b", "-a", "a.", "a--b", "a..b", "a.git", "größe", "x" * 96,
     "x" * 97, "a/" + "x" * 97, "", "a/", "/a", "datasets/a/b", "_a", "a\n"],
)  # fmt: skip
def test_a_repository_is_named_as_the_hub_allows(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        said = judged(repo=name)
        assert said.startswith(f"{name[:120]!r} is not a valid repository name on the Hub: ")
    else:
        assert judged(repo=name) == ""


@pytest.mark.parametrize(
    ("params", "said"),
    [
        pytest.param({"revision": "release/2.0"}, "", id="branch"),
        pytest.param({"tag": "v1.0-rc.1"}, "", id="tag"),
        pytest.param({"revision": "refs/pr/7"}, PULL, id="pull request"),
        pytest.param({"revision": "refs/heads/x"}, "'refs/heads/x' is a full reference: write the name of the branch alone",
                     id="full reference"),
        pytest.param({"revision": "c0ffee00" * 5}, "is a commit, not a branch: nothing can be added to it", id="commit"),
        pytest.param({"tag": "c0ffee00" * 5}, "is a commit, not a tag", id="tag like a commit"),
        *(pytest.param({"revision": name}, f"{name!r} is not a valid name of a branch in git", id=repr(name))
          for name in ("a b", "a..b", "a~1", "a:b", "a/", "/a", "a.lock", "a.lock/b", "-a", ".a", "a/.b", "@", "a@{1}", "", "a\\b", "a\n")),
        pytest.param({"tag": "v1^"}, "'v1^' is not a valid name of a tag in git", id="tag with a caret"),
        pytest.param({"tag": "v1", "pull_request": True}, "a pull request has no commit on the branch", id="tagged pull"),
    ],
)  # fmt: skip
def test_a_revision_is_a_branch_and_a_tag_a_tag(params: dict[str, str | bool], said: str) -> None:
    found = judged(**params)
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(
    "name", ["a b", "a..b", "a~1", "a:b", "a/", "/a", "a.lock", "-a", ".a", "next", "a/b", "ä", "x@y"]
)
def test_a_branch_is_what_git_takes_for_one(name: str) -> None:
    git = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True)
    assert (judged(revision=name) == "") == (git.returncode == 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("en", ""), ("yue", ""), ("no", ""), ("code", ""), ("multilingual", ""),
        ("en-US", "two or three small letters, e.g. `en`, `code` or `multilingual`"),
        ("DE", "two or three small letters, e.g. `de`, `code`"),
        ("english", "'english' is not a language on the Hub: it is a code of ISO 639 in two or three small letters, `code`"),
        ("", "'' is not a language on the Hub"),
    ],
)  # fmt: skip
def test_a_language_is_a_code_that_the_hub_takes(code: str, said: str) -> None:
    found = judged(language=code)
    assert said in found
    assert bool(said) == bool(found)
