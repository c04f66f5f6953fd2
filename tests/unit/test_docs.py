"""The documentation says what the code does, and its examples run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.pipeline.compiled import compile_pipeline
from deploy_runner.registry import Registry
from deploy_runner.sdk import Context, Stage
from tests.conftest import ROOT, Project, module_of

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
GUIDES = ("how-to", "coming-from")
BLOCK = re.compile(r"^```([\w-]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pipelines() -> list[pytest.param]:  # type: ignore[valid-type]
    """Return the pipelines of the pages; indented blocks go on from the block before."""
    found = []
    for page in PAGES:
        if page.name == "stages.md" or page.parent.name in GUIDES:
            continue  # tests/unit/test_examples.py, tests/docs
        whole: list[str] = []
        for kind, text in BLOCK.findall(page.read_text()):
            if kind == "yaml" and text.startswith("  "):
                whole[-1] += text
            elif kind == "yaml":
                whole.append(text)
        found += [pytest.param(text, id=f"{name_of(page)}-{index}") for index, text in enumerate(whole)]
    return found


def test_the_generated_pages_are_current() -> None:
    for name, text in module_of(ROOT / "docs/generate.py").pages().items():
        assert (ROOT / "docs" / name).read_text() == text, f"make docs ({name})"


@pytest.mark.parametrize("text", pipelines())
def test_every_pipeline_in_the_docs_compiles(text: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "pipeline.yaml").write_text(text)
    assert compile_pipeline(tmp_path / "pipeline.yaml").stages


def test_the_matrix_of_the_docs_runs(tmp_path: Path) -> None:
    text = next(
        t for k, t in BLOCK.findall((ROOT / "docs/writing-a-pipeline.md").read_text()) if "matrix: {name" in t
    )
    project = Project(tmp_path / "p")
    project.write("pipeline.yaml", text)
    assert project.run()["ran"] == 4
    assert project.output("loud[ada]") == b"ADA\n"


@pytest.mark.parametrize("page", ["docs/writing-a-stage.md", "deploy_runner/sdk.py"])
def test_the_stage_in_ten_lines_runs(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    if page.endswith(".md"):
        (source,) = (t for k, t in BLOCK.findall(text) if k == "python")
    else:
        source = text.partition('"""')[2]
        source = source[source.index("    from deploy_runner.sdk") : source.index("The module is imported")]
        source = "\n".join(line[4:] for line in source.replace('\\"', '"').splitlines())
    project = Project(tmp_path / "p")
    project.write("stages/text/upper.py", source)
    project.write("in.txt", "hello")
    project.pipeline('a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}')
    project.run()
    assert project.output("a") == b"HELLO!"


def test_every_stage_type_is_documented() -> None:
    page = (ROOT / "docs/stages.md").read_text()
    for kind in Registry(ROOT).all():
        assert f"## {kind.cls.uses}\n" in page
        for model in (kind.cls.Params, kind.cls.Inputs, kind.cls.Outputs):
            for name, field in model.model_fields.items():
                assert field.description, f"{kind.cls.uses}: {name}"


@pytest.mark.parametrize("module", ["sdk", "testing", "api", "errors"])
def test_the_reference_has_every_public_name(module: str) -> None:
    names = importlib.import_module(f"deploy_runner.{module}").__all__
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(set(names) & set(headings))


@pytest.mark.parametrize("cls", [Stage, Context])
def test_the_reference_describes_what_a_stage_declares_and_is_given(cls: type[object]) -> None:
    page = (ROOT / "docs/api.md").read_text()
    for name in inspect.get_annotations(cls):
        if not name.startswith("_"):
            assert re.search(rf"^- `{name}: .*`\n  \S", page, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_a_page_and_a_heading_that_exist(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"(?<!`)\]\(([^)\s]+)\)", re.sub(r"(`+)[^`]+\1(?!\])", "`code`", text))
    for target in (t for t in targets if not t.startswith("http")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)).lower().replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def test_each_page_is_in_one_place_of_the_navigation() -> None:
    import yaml

    listed = Counter(pages_of(yaml.safe_load((DOCS / ".nav.yml").read_text())["nav"]))
    assert set(listed) == {p.relative_to(DOCS).as_posix() for p in PAGES if p.is_relative_to(DOCS)}
    assert listed.most_common(1)[0][1] == 1


def pages_of(entry: Any) -> Iterator[str]:
    """Return the pages below an entry of the navigation."""
    match entry:
        case {"glob": pattern}:
            yield from (p.relative_to(DOCS).as_posix() for p in DOCS.glob(pattern))
        case dict():
            yield from (name for value in entry.values() for name in pages_of(value))
        case list():
            yield from (name for value in entry for name in pages_of(value))
        case str() if not entry.startswith("http"):
            yield entry


def test_each_word_of_the_glossary_is_on_the_page_that_explains_it() -> None:
    text = (DOCS / "glossary.md").read_text()
    words = re.findall(r"^\| \[([^\]]+)\]\(([\w-]+\.md)(?:#([\w-]+))?\) \| \S", text, re.MULTILINE)
    assert len(words) == text.count("\n| ") - 1 > 40
    assert [w for w, _, _ in words] == sorted((w for w, _, _ in words), key=str.casefold)
    for word, page, _ in words:
        said = " ".join((DOCS / page).read_text().split())
        assert re.search(rf"(?<!\w){re.escape(word)}", said, re.IGNORECASE), (word, page)


def test_the_map_names_every_room_and_only_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    names = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert [n for n in names if not (ROOT / "deploy_runner" / n).exists()] == []
    rooms = {p.name + "/" * p.is_dir() for p in (ROOT / "deploy_runner").iterdir() if p.name != "__pycache__"}
    assert rooms - {"__init__.py", "py.typed"} <= set(names)


def commands() -> list[str]:
    text = "\n".join(t for k, t in BLOCK.findall((ROOT / "README.md").read_text()) if k == "console")
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def test_the_readme_has_two_commands_to_begin_with() -> None:
    assert commands()[:2] == ["make run", "make test"]
    done = subprocess.run(["make", "-n", "run", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "deploy_runner run pipeline.yaml" in done.stdout
    assert "pytest" in done.stdout


def test_the_other_commands_of_the_readme_run(tmp_path: Path) -> None:
    """`make run` is tested as tests/pipeline/test_main_pipeline.py; `make test` is this."""
    project = Project(tmp_path / "p")
    for name in ("pipeline.yaml", "configs", "examples"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project.folder / name)
    own = Project(tmp_path / "own")
    (own.folder / "checkpoints").mkdir()
    shutil.copy(ROOT / "examples/digits/digits.pt", own.folder / "checkpoints/best.pt")
    shutil.copy(ROOT / "examples/digits/model.py", own.folder)
    rest = [c.split()[1:] for c in commands() if c.startswith("deploy-runner")]
    assert [command[0] for command in rest] == ["explain", "convert", "init", "run"]
    for command in rest[:2]:
        project.cli(*command)
    for command in rest[2:]:
        own.cli(*command)


def test_the_schema_accepts_the_example_and_refuses_a_typing_error() -> None:
    import jsonschema
    import yaml

    schema = json.loads((ROOT / "docs/pipeline.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    pipeline = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
    jsonschema.validate(pipeline, schema)
    nested: dict[str, Any] = {
        "b": {"x": {"shape": []}, "y": [{"shape": [2]}, "${{ vars.y }}"]},
        "shape": {"shape": [1]},
    }
    pipeline["stages"]["model"]["with"]["example"] = nested
    jsonschema.validate(pipeline, schema)
    nested["b"]["y"] = [{"shap": [2]}]
    with pytest.raises(jsonschema.ValidationError, match="not valid under any"):
        jsonschema.validate(pipeline, schema)
    nested["b"]["y"] = {"shape": [2]}
    pipeline["stages"]["fp32"]["with"] = {"opste": 20}
    with pytest.raises(jsonschema.ValidationError, match="opste"):
        jsonschema.validate(pipeline, schema)


def test_pip_install_alone_gives_the_command_line_without_torch(tmp_path: Path) -> None:
    """The base dependencies are all that the command line and the engine import."""
    project = Project(tmp_path / "p")
    project.pipeline("a: {uses: run.command, outputs: {o: o}, with: {command: 'echo hi > $OUTPUT_O'}}")
    project.run()
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'numpy', 'onnx', 'onnxruntime', 'boto3', 'moto', 'huggingface_hub'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from deploy_runner.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for verb in (["run", "--force"], ["stages"], ["schema"], ["plan"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-c", blocked, *verb],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
