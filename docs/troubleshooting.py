"""Write the page on which a message is found again, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from error_messages import Message, collected

__all__ = ["troubleshooting"]

_INTRODUCTION = """\
# Troubleshooting

Generated from the source: every error message of deploy-runner, with what to do about it.

Search this page for a part of the message that has none of your own names in it. A word in capitals, such as
NAME, stands for what your project has in that place. An error in a pipeline begins with its place,
`pipeline.yaml:12:5`: file, line and column. What an error says in its last brackets is shown here after the
arrow.

| exit code | what happened |
|---|---|
| 0 | everything is as the pipeline describes it |
| 1 | a stage, a check or a push failed, or `status` found a difference: the last lines name it |
| 2 | nothing was run: the pipeline, an argument or a file is wrong |
| 3 | a conflict: the remote has different content under the name, and nothing was overwritten |
| 130 | you pressed Ctrl-C; what was finished is kept, and the next run continues |

Three commands find most causes. `deploy-runner validate` lists every error of a pipeline at once.
`deploy-runner doctor` names missing packages, tools and credentials, with the command for each.
`deploy-runner explain STAGE` says why a stage runs again.
"""


class _Area(NamedTuple):
    """A part of the page: the modules whose messages it has, by how their names begin."""

    title: str
    helps: str
    modules: tuple[str, ...]


_AREAS = (
    _Area(
        "The pipeline file",
        "[Writing a pipeline](writing-a-pipeline.md), [the keys of the file](schema.md)",
        ("pipeline",),
    ),
    _Area(
        "Stage types and code of your own",
        "[Writing a stage](writing-a-stage.md)",
        ("registry", "usercode", "sdk", "testing", "stages.run"),
    ),
    _Area(
        "A shared cache",
        "[A shared cache](shared-cache.md)",
        (
            "commands.cache_remote",
            "store.link",
            "store.remote",
            "store.sending",
            "store.signatures",
            "store.transfer",
            "store.upload",
            "store.leases",
            "store.shared",
            "store.verify_remote",
        ),
    ),
    _Area("The store", "[Caching](caching.md#the-store)", ("store", "engine.runs", "commands.cache")),
    _Area(
        "Many machines", "[Many machines](many-machines.md)", ("engine.execute.ray", "engine.execute.node")
    ),
    _Area(
        "Running a stage",
        "[What a stage may do](security.md), [GPUs, memory and time](writing-a-pipeline.md)",
        ("engine",),
    ),
    _Area("Answers of a served model", "[Serving a model](serving.md)", ("server", "commands.serving")),
    _Area("The command line", "[Command line](cli.md)", ("",)),
    _Area(
        "Checkpoints",
        "[What is read](writing-a-pipeline.md#what-checkpointstate_dict-reads)",
        ("stages.checkpoint",),
    ),
    _Area(
        "Models",
        "[Weights that don't match](writing-a-pipeline.md#weights-that-dont-match-at-first)",
        ("stages.model",),
    ),
    _Area("PyTorch programs", "[Choosing a format](choosing.md)", ("stages.torch",)),
    _Area("ONNX", "[What converts](formats.md), [int8](choosing.md#fast-on-a-cpu)", ("stages.onnx",)),
    _Area("OpenVINO", "[Choosing a format](choosing.md#openvino)", ("stages.openvino",)),
    _Area(
        "Phones and Core ML", "[Choosing a format](choosing.md#phones)", ("stages.mobile", "stages.coreml")
    ),
    _Area("Checks and the choice", "[Parity and tolerance](parity.md)", ("stages.verify", "stages.select")),
    _Area(
        "Packages",
        "[From dry run to live](dry-run-to-live.md), [signed packages](provenance.md)",
        ("stages.package",),
    ),
    _Area("Pushes to the Hub", "[The Hub](hub.md)", ("stages.push.hub", "stages.push.huggingface")),
    _Area(
        "Pushes to an OCI registry",
        "[An OCI registry](other-targets.md#an-oci-registry)",
        ("stages.push.oci", "stages.push.registry"),
    ),
    _Area(
        "Pushes to MLflow",
        "[MLflow](other-targets.md#mlflow)",
        ("stages.push.mlflow", "stages.push.tracking"),
    ),
    _Area(
        "Pushes to AWS",
        "[From dry run to live](dry-run-to-live.md), [pushes that converge](converging.md)",
        ("stages.push",),
    ),
)


def troubleshooting(package: Path, types: Sequence[str]) -> str:
    """Return the page with the messages of a package; `types` are the names of the stage types."""
    by_area: dict[_Area, list[Message]] = {area: [] for area in _AREAS}
    for message in collected(package):
        if not message.module.startswith("local."):  # What the servers of a dry run answer.
            by_area[_area(message.module)].append(message)
    return _INTRODUCTION + "".join(
        f"{line}\n" for a, found in by_area.items() for line in _section(a, found, types)
    )


def _area(module: str) -> _Area:
    """Return the area with the longest beginning of a module's name."""
    return max(
        _AREAS, key=lambda area: max((len(m) for m in area.modules if module.startswith(m)), default=-1)
    )


def _section(area: _Area, messages: Iterable[Message], types: Sequence[str]) -> Iterator[str]:
    """Return an area's lines: first what several modules may say, then the stage types one by one."""
    by_type: dict[str, dict[str, str]] = {}
    for message in messages:
        kind = message.module.removeprefix("stages.")
        found = by_type.setdefault(kind if kind in types else "", {})
        found[message.text] = max(found.get(message.text, ""), message.fix, key=len)
    yield from ("", f"## {area.title}", "", f"More: {area.helps}.")
    for kind, found in sorted(by_type.items()):
        if kind:
            yield from ("", f"### {kind}", "", f"More: [{kind}](stages.md#{kind.replace('.', '')}).")
        yield ""
        yield from (_line(text, fix) for text, fix in sorted(found.items(), key=_ordered))


def _ordered(item: tuple[str, str]) -> tuple[str, str]:
    return item[0].strip("'\"`…").casefold(), item[0]


def _line(text: str, fix: str) -> str:
    return f"- {_code(text)}" + (f" → {_escaped(fix)}" if fix else "")


def _code(text: str) -> str:
    """Return a text as code, whatever backticks are in it."""
    if "`" not in text:
        return f"`{text}`"
    edge = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"``{edge}{text}{edge}``"


def _escaped(text: str) -> str:
    """Return a sentence in which Markdown's characters stand for themselves, except those of code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _code(text)
    for at in range(0, len(parts), 2):
        for character in "\\*_[]<>#":
            parts[at] = parts[at].replace(character, f"\\{character}")
    return "`".join(parts)
