"""What GitHub Actions would evaluate and a pipeline doesn't: each kind of expression in one sentence."""

from __future__ import annotations

import re

from ..errors import shortened
from .credentials import is_credential

__all__ = ["foreign", "shown"]

_OPERATOR = re.compile(r"\|\||&&|[=!<>(\[*,]")
_INDEX = re.compile(r"(\w+)\[['\"]?([\w-]+)['\"]?\]\Z")
_FACT = re.compile(r"(github|runner)\.([a-z_]+)\Z")
_OUTPUT = re.compile(r"(?:steps|needs|jobs)\.([\w-]+)\.outputs\.([\w-]+)\Z")
_CONTEXTS = ("github", "runner", "steps", "needs", "job", "jobs", "inputs", "strategy")


def shown(expression: str) -> str:
    """Return a reference as it is written, shortened where it is long."""
    return f"${{{{ {shortened(expression)} }}}}"


def foreign(expression: str) -> tuple[str, str] | None:
    """Return what is wrong with an expression of GitHub's, and what to write; None for any other text."""
    root, _, name = expression.partition(".")
    if found := _INDEX.match(expression):
        return f"{shown(expression)} is an index", f"write {shown('.'.join(found.groups()))}"
    if _OPERATOR.search(expression) and not expression.startswith("stages."):
        message = f"{shown(expression)} is an expression; references are names, without operators"
        return message, "compute it before the run, and pass it by `--set vars.NAME=…`"
    if root not in _CONTEXTS or not name:
        return None
    message = f"{shown(expression)} is known to GitHub Actions only"
    if found := _OUTPUT.match(expression):
        return message, f"write {shown('stages.{}.outputs.{}'.format(*found.groups()))}"
    if found := _FACT.match(expression):
        variable = "_".join(found.groups()).upper()
        if is_credential(variable):
            return message, f"write {shown(f'secrets.{variable}')}"
        return message, f"declare `env: {{{variable}: null}}`, and write {shown(f'env.{variable}')}"
    if root == "inputs":
        return message, f"write {shown(f'vars.{name}')}, and pass it by `--set vars.{name}=…`"
    return message, "pass it by `--set vars.NAME=…`"
