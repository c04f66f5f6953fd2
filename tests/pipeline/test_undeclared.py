"""What a stage reads, lists or looks for in the project without declaring it is caught; what is its own is not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import Project

STEPS = """
import glob, importlib, os, shutil, tempfile
from pathlib import Path
ROOT = Path(__file__).resolve().parent.parent
def ask(ctx, inputs, outputs, codes):
    outputs["o"].write_text("\\n".join(str(eval(code)) for code in codes))
"""

TYPES = '''
import importlib, inspect, os
from pathlib import Path
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
class Reads(Stage):
    """Read what lies beside."""
    uses = "text.reads"
    class Params(StageParams):
        how: str
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
        here = Path(__file__).parent
        outputs.text.write_text("x")
        if params.how == "read":
            (here / "labels.json").read_text()
        if params.how == "load":
            importlib.import_module(".dynamic", __package__)
        if params.how == "list":
            os.listdir(here)
        if params.how == "self":
            inspect.getsource(Reads), Path(__file__).read_text(), here.is_dir()
'''

CAUGHT = {
    'open(ROOT / "data/a.csv").read()': "read data/a.csv",
    'open("data/a.csv").read()': "read data/a.csv",
    '(ROOT / "data/a.csv").exists()': "looked for data/a.csv",
    'os.path.isfile(b"data/a.csv")': "looked for data/a.csv",
    'os.access("data/a.csv", os.R_OK)': "looked for data/a.csv",
    'os.readlink(ROOT / "link")': "looked for link",
    'glob.glob("data/*.csv")': "listed data",
    'list(os.walk(ROOT / "data"))': "listed data",
    'list((ROOT / "lib").glob("*.json"))': "listed lib",
    '(os.chdir(ROOT), os.path.exists("data/a.csv"))': "looked for data/a.csv",
}
CAUGHT_TOO = {
    'shutil.copy("data/a.csv", "here.csv")': "read data/a.csv",
    '__import__("pandas").read_csv("data/a.csv")': "read data/a.csv",
    '__import__("pandas").read_csv(ROOT / "data/a.csv")': "read data/a.csv",
    '__import__("torch").load("data/a.csv")': "read data/a.csv",
    'Path("data").is_dir()': "looked for data",
    'os.path.getsize("data/a.csv")': "looked for data/a.csv",
    '(ROOT / "lib/../data/a.csv").stat()': "looked for data/a.csv",
    'os.path.islink(ROOT / "link")': "looked for link",
    'os.listdir("data")': "listed data",
    'list((ROOT / "data").iterdir())': "listed data",
    'list(os.scandir(ROOT / "data"))': "listed data",
}
ANSWERED = {
    'os.path.exists("none.csv")': "False",
    '(ROOT / "data/none.csv").exists()': "False",
    "(ROOT.is_dir(), Path(__file__).exists(), Path(__file__).parent.is_dir())": "(True, True, True)",
    'str(Path("data").resolve())[-5:]': "/data",
    '[p for p in ROOT.parents if (p / "x/.git").exists()], (ROOT / "pyproject.toml").exists()': "([], False)",
    '(Path("results").exists(), Path("results").mkdir())': "(False, None)",
    'os.makedirs("made", exist_ok=True)': "None",
    '(os.path.exists("o.txt"), os.path.exists("outputs/o.txt"), "data" in os.listdir("."))': (
        "(False, False, False)"
    ),
    '__import__("linecache").getline("lib/other.py", 1)': "",
    "shutil.rmtree(tempfile.mkdtemp()) or os.stat in os.supports_dir_fd": "True",
}
WITH_INPUTS = {
    '(os.path.exists("data/a.csv"), (ROOT / "data/a.csv").stat().st_size)': "(True, 3)",
    '(ROOT / "data").is_dir(), os.access(ROOT / "data/a.csv", os.R_OK)': "(True, True)",
}


@pytest.fixture
def asking(project: Project) -> Project:
    """A project with files beside its code."""
    project.write("lib/steps.py", STEPS)
    project.write("lib/more.json", "{}")
    project.write("plug.py", "")
    project.write("lib/other.py", "x = 1")
    project.write("lib/local/blocks.py", "")
    project.write("pyproject.toml", "")
    (project.folder / "link").symlink_to("data")
    for name in ("data/a.csv", "results/old.txt", "outputs/o.txt", "o.txt", ".git/HEAD"):
        project.write(name, "1,2")
    return project


def step(name: str, *codes: str, inputs: str = "") -> str:
    given = f"inputs: {{{inputs}}}, " if inputs else ""
    asked = f"{{function: 'lib/steps.py:ask', params: {{codes: {json.dumps(codes)}}}}}"
    return f"{name}: {{uses: run.python, {given}outputs: {{o: o.txt}}, with: {asked}}}"


def assert_caught(errors: list[str], sayings: Iterable[str]) -> None:
    """Assert that the stages of these errors, the pipeline's first, did that and are told what to add."""
    for i, (error, said) in enumerate(zip(errors, sayings, strict=True)):
        path = said.split()[-1]
        declared = f"inputs: {{{Path(path).stem}: {path}}}"
        assert error == (
            f"it {said} (lib/steps.py:5), which is not declared (add `{declared}` "
            f"to caught{i} at pipeline.yaml:{4 + i})"
        )


def test_what_a_stage_learns_of_undeclared_files_fails_it_and_what_is_its_own_does_not(
    asking: Project,
) -> None:
    rows = [step(f"caught{i}", code) for i, code in enumerate(CAUGHT)]
    rows += [
        step("answered", *ANSWERED),
        step("given", *WITH_INPUTS, inputs="a: data/a.csv"),
        step("at_its_place", 'open("data/a.csv").read()', inputs="a: data/a.csv"),
        step("several", '[(ROOT / name).exists() for name in ("data/a.csv", "link", "lib/more.json")]'),
        step("module", 'importlib.import_module("pl" + "ug")'),
        step("package", 'importlib.import_module("loc" + "al")'),
        "command: {uses: run.command, outputs: {o: o.txt}, with: {command: cat data/a.csv > $OUTPUT_O}}",
    ]  # fmt: skip
    asking.pipeline("\n".join(rows))
    stages = asking.run(exits=1)["stages"]
    errors = {name: stage.get("error", "") for name, stage in stages.items()}
    assert_caught([errors[f"caught{i}"] for i in range(len(CAUGHT))], CAUGHT.values())
    for name, answers in (("answered", ANSWERED), ("given", WITH_INPUTS)):
        assert errors[name] == ""
        digest = stages[name]["outputs"]["o"].removeprefix("sha256:")
        (answer,) = (path for path in asking.objects() if "".join(path.parts[-2:]) == digest)
        assert answer.read_text().splitlines() == list(answers.values())
    assert errors["at_its_place"] == (
        "it read data/a.csv (lib/steps.py:5) in the project, though it gets a copy of it "
        "(use the path that it gets as the input `a`)"
    )
    assert "(add `inputs: {a: data/a.csv, link: link, more: lib/more.json}` to several" in errors["several"]
    assert errors["module"] == (
        "the module plug, which lib/steps.py:5 imports, is plug.py, which this stage doesn't declare "
        "(import it by the statement `import plug`, which declares it)"
    )
    assert "imports, is lib/local, which this stage doesn't declare" in errors["package"]
    assert errors["command"].endswith("No such file or directory; declare data/a.csv as an input)")


@pytest.mark.slow
def test_libraries_that_look_in_the_project_are_caught_and_looking_for_themselves_is_no_matter(
    asking: Project,
) -> None:
    asking.write("bert/config.json", "{}")
    asking.write("matplotlibrc", "")
    asking.write("stages/labels.json", "{}")
    asking.write("stages/dynamic.py", "")
    asking.write("stages/types.py", TYPES)
    asking.write(".env", "A=1")
    rows = [step(f"caught{i}", code) for i, code in enumerate(CAUGHT_TOO)]
    rows += [
        f"type_{how}: {{uses: text.reads, with: {{how: {how}}}}}" for how in ("read", "load", "list", "self")
    ]
    rows += [
        step("local", '__import__("transformers").AutoConfig.from_pretrained("bert")'),
        step("dotenv", '__import__("dotenv").load_dotenv()'),
        step("quiet", '__import__("matplotlib.pyplot") and 1', '__import__("numpy").zeros(3).sum()',
             '__import__("inspect").getsource(ask)[:3]', '__import__("transformers").AutoConfig and 1',
             '__import__("importlib.metadata").metadata.version("pip") and 1',
             '__import__("multiprocessing").Pool(2).map(str, [1, 2])', 'shutil.which("sh") and 1'),
    ]  # fmt: skip
    asking.pipeline("\n".join(rows))
    stages = asking.run(exits=1, PYTHONPATH=str(asking.folder))["stages"]
    errors = {name: stage.get("error", "") for name, stage in stages.items()}
    assert_caught([errors[f"caught{i}"] for i in range(len(CAUGHT_TOO))], CAUGHT_TOO.values())
    assert (errors["quiet"], errors["type_self"]) == ("", "")
    assert "it looked for bert (lib/steps.py:5), which is not declared: add `inputs" in errors["local"]
    assert errors["dotenv"].startswith(
        "it looked for .env (lib/steps.py:5), which is not declared (add the var"
    )
    assert errors["type_read"].startswith(
        "it read stages/labels.json (stages/types.py:15), which is not declared"
    )
    assert errors["type_load"].endswith("(import it by an `import` statement, which declares it)")
    assert errors["type_list"].startswith("it listed stages (stages/types.py:19), which is not declared")
