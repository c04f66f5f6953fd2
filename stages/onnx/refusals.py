"""Say why an exporter failed: in a sentence with the user's line, and all of it for the log."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from deploy_runner.sdk import StageError, first_line

from ..model.bundles import Bundle
from ..model.wording import user_line

__all__ = ["refusal", "whole"]

_OPERATOR = re.compile(
    r"(?:op='|operator '|export of operator |No ONNX function found for .*?'|unrecognized namespace )"
    r"([\w.:]*\w)"
)
_UNKNOWN = ("Unsupported", "No ONNX function", "not supported", "unrecognized namespace")
_LINE = re.compile(r'File "([^"/][^"]*\.py)", line (\d+)')
_ADDED = re.compile(r"Support for this operator was added in version (\d+)")
_FIXED = re.compile(r"inferred a static shape of \d+ for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]")
_DATA = ("data-dependent", "guardondatadependent")
_ADVICE = re.compile(
    r"\s*(?:Please feel free to|Please open|Please file|\[Caused by the value|For more information|"
    r"Exception raised from|The above operation failed|To diagnose|from user code).*",
    re.DOTALL,
)
"""What torch adds to a cause that isn't one."""
_MOST = 600
"""Letters of a cause that is said; all of it is in the log."""


def refusal(way: str, error: Exception, bundle: Bundle) -> StageError:
    """Name the cause, the operator and the user's line; exporters hide them deep in a chain of errors."""
    errors = list(_chain(error))
    text = "\n".join(str(one) for one in errors)
    lines = _LINE.findall(text)
    where = f" at {lines[-1][0]}:{lines[-1][1]}" if lines else user_line(error)
    if any(said in text.lower() for said in _DATA):
        said = f"the model's control flow depends on its data{where}, which the {way} exporter can't export"
        return StageError(said, fix="use torch.cond")
    operator = _OPERATOR.search(text)
    if operator and any(said in text for said in _UNKNOWN):
        where = where or _line_of_operator(bundle, operator.group(1))
        if newer := _ADDED.search(text):
            said = f"the operator {operator.group(1)} has no equivalent in this opset{where}"
            return StageError(said, fix=f"set `opset: {newer.group(1)}` or newer")
        said = f"the operator {operator.group(1)} has no ONNX equivalent{where}"
        if ", " in (reason := _cause(errors)) and operator.group(1) in reason:
            said += f" here: {reason}"
        return StageError(said, fix="replace it in the model, or keep this model as TorchScript")
    fix = "keep this model as TorchScript (torch.script)"
    if fixed := _FIXED.findall(text):
        axes = " and ".join(dict.fromkeys(f"axis {axis} of {name!r}" for name, axis in fixed))
        fix = f"if forward() fixes the size of {axes}, leave it out of `dynamic`"
    return StageError(f"the {way} exporter failed{where}: {_cause(errors)}", fix=fix)


def whole(error: BaseException | None) -> Iterator[str]:
    """Yield the lines of an error and of all that led to it, the outermost first."""
    for one in _chain(error):
        first, *rest = str(one).splitlines() or [""]
        yield f"{type(one).__name__}: {first}"
        yield from (line for line in rest if line.strip())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _cause(errors: list[BaseException]) -> str:
    """Return what the innermost declared cause says, without what torch advises beside it.

    Errors that were only being handled when another was raised come after it: they are steps of a library.
    """
    declared = list(itertools.takewhile(lambda error: error.__cause__ is not None, errors))
    inner = errors[: len(declared) + 1]
    for error in (*reversed(inner), *errors[len(inner) :]):
        text = _ADVICE.sub("", str(error)).strip()
        if text:
            said = _paragraph(text)
            said = said if " " in said else f"{type(error).__name__}: {said}"
            return (
                said
                if len(said) <= _MOST
                else said[:_MOST].rsplit(" ", 1)[0] + " … (all of it is in the log)"
            )
    return type(errors[-1]).__name__


def _paragraph(text: str) -> str:
    """Return the first lines of a text in one; of a text that prints code first, the line with the reason."""
    said, first = first_line(text), text.splitlines()[0].strip()
    if not said.startswith(first_line(first)):
        return said
    lines = itertools.takewhile(lambda line: line and not line.startswith('File "'),
                                (line.strip() for line in text.splitlines()))  # fmt: skip
    return first_line(" ".join(lines))


def _line_of_operator(bundle: Bundle, operator: str) -> str:
    """Return the user's line that calls an operator; the exporter's error doesn't say it."""
    import torch

    try:
        program = torch.export.export(bundle.exportable(), bundle.example(), strict=False)
    except Exception:  # What torch.export refuses is another exporter's to report.
        return ""
    for node in program.graph.nodes:
        if operator.replace("::", ".") in str(node.target):
            lines = _LINE.findall(node.meta.get("stack_trace") or "")
            return f" at {lines[-1][0]}:{lines[-1][1]}" if lines else ""
    return ""
