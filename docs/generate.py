"""Write the pages that are generated from the code: `make docs`."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from troubleshooting import troubleshooting

from deploy_runner.cli import build_parser
from deploy_runner.pipeline.schema import describe_stage_types, json_schema
from deploy_runner.registry import shared_example
from deploy_runner.report.stage_types import markdown

HERE = Path(__file__).parent

MODULES = ("deploy_runner.sdk", "deploy_runner.testing", "deploy_runner.api", "deploy_runner.errors")
"""The modules whose every public name is in the API reference."""
VALUES = {
    "deploy_runner.types": ("RunOptions", "Event", "StageResult", "Artifact", "Finding", "Resources"),
    "deploy_runner.engine.plan": ("Plan", "Action", "Explanation"),
    "deploy_runner.engine.keys": ("Change",),
    "deploy_runner.engine.runs": ("RunRecord",),
}
"""What their functions take and return, by the module that defines it."""
_WIDTH = 100


def pages() -> Mapping[str, str]:
    """Return the generated files' content by name."""
    root = HERE.parent
    types, schema = describe_stage_types(root), json_schema(root)
    return {
        "stages.md": markdown(types, shared_example()),
        "cli.md": "\n".join(_command_line()) + "\n",
        "api.md": "\n".join(_reference()) + "\n",
        "schema.md": "\n".join(_keys(schema)) + "\n",
        "troubleshooting.md": troubleshooting(
            root / "deploy_runner", [str(entry["uses"]) for entry in types]
        ),
        "pipeline.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
    }


def _command_line() -> Iterator[str]:
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    yield "# Command line"
    yield ""
    yield "Generated from the parser."
    yield from _help(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        yield ""
        yield f"## {name}"
        yield from _help(verb)


def _help(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield ""
    yield "```text"
    yield parser.format_help().strip()
    yield "```"


def _keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """Describe the keys of a pipeline file, by its schema."""
    yield from ("# The pipeline file", "")
    yield "Generated from the [JSON Schema](pipeline.schema.json), by which editors complete and check it."
    yield "`deploy-runner schema > pipeline.schema.json` writes that of the stage types you have installed."
    yield "[Writing a pipeline](writing-a-pipeline.md) explains the keys; [stage types](stages.md) lists"
    yield "what is possible under `with:`."
    known = schema["$defs"]
    tables = {
        "At the top": schema,
        "A stage": schema["properties"]["stages"]["additionalProperties"],
        "`resources:` of a stage": known["ResourcesSpec"],
        "`target:`": known["TargetSpec"],
        "`cache:`": known["CacheSpec"],
        "`executor:`": known["ExecutorSpec"],
    }
    for title, table in tables.items():
        yield from ("", f"## {title}", "", "| key | default | meaning |", "|---|---|---|")
        for name, key in table["properties"].items():
            required = name in table.get("required", ())
            value = key.get("default")
            default = (
                "required" if required else f"`{json.dumps(value)}`" if value not in ("", {}, []) else ""
            )
            yield f"| `{name}` | {default if '$ref' not in key else ''} | {key['description']} |"
    more = "The members of `target` beside these belong to the pushes: `aws`, `hub`, `oci`, `mlflow`."
    yield from (
        "",
        f"{more} [From dry run to live](dry-run-to-live.md) and [other targets](other-targets.md) show them.",
    )


def _reference() -> Iterator[str]:
    yield "# API reference"
    yield ""
    yield "Generated from signatures and docstrings. Names that are not on this page may change at any time."
    for name in MODULES:
        module = importlib.import_module(name)
        yield from ("", f"## {name}", "", _prose(module))
        for public in module.__all__:
            yield from _entry(module, public)
    yield from ("", "## Values", "", "What these functions take and return.")
    for name, names in VALUES.items():
        for public in names:
            yield from _entry(importlib.import_module(name), public)


def _entry(module: ModuleType, name: str) -> Iterator[str]:
    """Describe one name, or say where a name that the module only passes on is described."""
    value = getattr(module, name)
    home = getattr(value, "__module__", module.__name__)
    if home != module.__name__ and (home in MODULES or value.__name__ in VALUES.get(home, ())):
        yield from ("", f"### {name}", "", f"See [`{home}.{name}`](#{name.lower()}).")
    elif home.startswith("pydantic"):
        yield from ("", f"### {name}", "", f"`{name}` of [pydantic](https://docs.pydantic.dev).")
    elif inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield from ("", f"### {name}", "", _code(_signature(name, value)), "", _prose(value))
    else:
        yield from ("", f"### {name}", "", _markdown(_attributes(inspect.getsource(module))[name].prose))


def _class(name: str, cls: type[Any]) -> Iterator[str]:
    bases = ", ".join("NamedTuple" if b is tuple else b.__name__ for b in cls.__bases__ if b is not object)
    yield from ("", f"### {name}", "", _code(f"class {name}({bases})" if bases else f"class {name}"), "")
    yield _prose(cls)
    fields = [f"- {a}" for a in _attributes(textwrap.dedent(inspect.getsource(cls))).values() if a.annotation]
    if fields:
        yield from ("", *fields)
    for member, value in vars(cls).items():
        if member.startswith("_"):
            continue
        if isinstance(value, (property, cached_property)):
            yield from ("", f"**`{name}.{member}`**: {_prose(value)}")
        elif inspect.isfunction(value):
            yield from ("", _code(_signature(f"{name}.{member}", value)), "", _prose(value))


class _Attribute:
    """A public variable of a module or class, as its source declares and describes it."""

    def __init__(self, name: str, annotation: str, default: str, prose: str) -> None:
        self.annotation = re.sub(r"^ClassVar\[(.*)\]$", r"\1", annotation)
        self.prose = prose
        self._name = name
        self._default = "" if default.startswith("field(") else default

    def __str__(self) -> str:
        declared = f"{self._name}: {self.annotation}" + (f" = {self._default}" if self._default else "")
        prose = textwrap.indent(_markdown(self.prose), "  ").strip()
        return f"`{declared}`" + (f"\n  {prose}" if prose else "")


def _attributes(source: str) -> dict[str, _Attribute]:
    """Return the public variables of a module's or a class's source; a string below one describes it."""
    tree = ast.parse(source)
    body = tree.body[0].body if len(tree.body) == 1 and isinstance(tree.body[0], ast.ClassDef) else tree.body
    found = {}
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=default):
                declared, value = ast.unparse(annotation), ast.unparse(default) if default else ""
            case ast.Assign(targets=[ast.Name(id=name)]):
                declared, value = "", ""
            case _:
                continue
        if not name.startswith("_"):
            found[name] = _Attribute(name, declared, value, _text(following))
    return found


def _text(statement: ast.stmt) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return ""


class _Verbatim(str):
    """A part of a signature that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(name: str, function: Any) -> str:
    """Return how a function is declared, on several lines if it is long."""
    known = inspect.signature(function)
    given = [_shown(parameter) for parameter in known.parameters.values()]
    returns = f" -> {known.return_annotation}"
    line = f"{name}{known.replace(parameters=given, return_annotation=inspect.Signature.empty)}{returns}"
    if len(line) <= _WIDTH:
        return line
    rows = [str(parameter) for parameter in given]
    only = [i for i, p in enumerate(given) if p.kind is p.KEYWORD_ONLY]
    if only:
        rows.insert(only[0], "*")
    return "\n".join([f"{name}(", *(f"    {row}," for row in rows), f"){returns}"])


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation, default = parameter.annotation, parameter.default
    if isinstance(default, tuple) and default and default == type(default)():
        default = _Verbatim(f"{type(default).__name__}()")
    return parameter.replace(
        annotation=_Verbatim(annotation) if isinstance(annotation, str) else annotation, default=default
    )


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _prose(documented: Any) -> str:
    text = inspect.getdoc(documented)
    assert text, documented
    return _markdown(text)


def _markdown(text: str) -> str:
    """Return a docstring with its indented blocks as fenced ones."""
    return re.sub(
        r"(?:^ {4}.*\n?|^\n(?=\n* {4}))+", lambda block: _fenced(block[0]), text, flags=re.MULTILINE
    ).strip()


def _fenced(block: str) -> str:
    content = textwrap.dedent(block).strip("\n")
    kind = "python" if re.search(r"^(from|import) ", content, re.MULTILINE) else "text"
    return f"\n```{kind}\n{content}\n```\n"


def main() -> None:
    """Write every page that has changed."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
