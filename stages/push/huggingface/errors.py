"""Say in one sentence what the Hub's client has to say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy_runner.sdk import ConflictError, StageError, first_line

_QUOTA = re.compile(r"quota|storage limit|payment required|exceeded", re.IGNORECASE)
TOKEN_FIX = "`hf auth login`, or export HF_TOKEN=…, with write access"
_FULL_FIX = "delete what is not needed there, or raise the account's limit"


@contextmanager
def one_sentence(repo: str) -> Iterator[None]:
    """Turn whatever the client raises about `repo` into a StageError or ConflictError."""
    try:
        yield
    except (StageError, ConflictError):
        raise
    except Exception as error:
        raise plain_error(error, repo) from error


def plain_error(error: Exception, repo: str) -> StageError | ConflictError:
    """Return the sentence for an error of the client; what isn't one is raised again."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    error = root(error)
    if isinstance(error, (StageError, ConflictError)):
        return error
    if isinstance(error, HfHubHTTPError):
        return _http_error(error, repo)
    if isinstance(error, LocalTokenNotFoundError):
        return StageError("no Hub token was found", fix=TOKEN_FIX)
    if isinstance(error, HFValidationError):
        return StageError(f"{repo[:120]!r} is not a valid repository name on the Hub: {first_line(error)}")
    said = " ".join(line.lstrip("- ") for line in str(error).splitlines() if line.strip())
    if isinstance(error, ValueError) and "metadata in README.md" in said:
        return StageError(
            f"the Hub rejected the model card: {said}", fix="check `license`, `tags` and `language`"
        )
    if isinstance(error, ValueError) and _QUOTA.search(said):
        return StageError(f"the Hub's storage limit prevents uploads to {repo}: {said}", fix=_FULL_FIX)
    if isinstance(error, (OSError, ValueError)):
        return StageError(f"the Hub request failed: {said[:300] or type(error).__name__}")
    raise error


def root(error: BaseException) -> Exception:
    """Return what has gone wrong beneath: uploads run in threads, which wrap it in a RuntimeError."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    assert isinstance(error, Exception)
    return error


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error of the client, 0 where it has none."""
    response = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def _http_error(error: Any, repo: str) -> StageError | ConflictError:
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError

    status = status_of(error)
    said = (error.server_message or first_line(error)).replace("\n", "; ")
    if status in (402, 403, 413, 507) and _QUOTA.search(said):
        return StageError(f"the Hub's storage limit prevents uploads to {repo}: {said}", fix=_FULL_FIX)
    if isinstance(error, (GatedRepoError, DisabledRepoError)):
        return StageError(f"this token has no access to {repo}: {said}",
                          fix="ask for access on the repository's page, or use another token")  # fmt: skip
    if status == 401 and not (isinstance(error, RepositoryNotFoundError) and "not found" in said.lower()):
        return StageError(f"the Hub rejected this token: {said}", fix=TOKEN_FIX)
    if isinstance(error, RepositoryNotFoundError):
        return StageError(f"{repo} does not exist, or is private and this token has no read access to it",
                          fix="check its name; `hf auth whoami` names the token's account")  # fmt: skip
    if status == 403:
        return StageError(f"this token has no write access to {repo}: {said}", fix=TOKEN_FIX)
    if status in (409, 412):
        return ConflictError(f"the Hub reported a conflict for {repo}: {said}", fix="run again")
    return StageError(f"the Hub responded with {status} for {repo}: {said}")
