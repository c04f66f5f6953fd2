"""A pipeline file is checked whole, and every problem says where it is and how to mend it."""

from __future__ import annotations

import re

import pytest

from deploy_runner.errors import SpecError, UsageError
from deploy_runner.types import PathSource, RefSource
from tests.conftest import Project
from tests.unit.compiling import compile_


def problems(project: Project) -> list[str]:
    with pytest.raises(SpecError, match=re.escape(str(project.folder))) as error:
        compile_(project)
    return [str(p).removeprefix(f"{project.folder}/") for p in error.value.problems]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("a: {uses: text.uper}", "pipeline.yaml:4:13: there is no stage type 'text.uper' (did you mean 'text.upper'?)"),
        ("a: {uses: text.upper}", "pipeline.yaml:4:3: stage 'a' (text.upper) needs the input 'text': the text"),
        ("a: {uses: text.upper, inputs: {txt: in.txt, text: in.txt}}",
         "pipeline.yaml:4:34: stage 'a' (text.upper) has no input 'txt' (did you mean 'text'?)"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, resources: {gpu: -1}}",
         "pipeline.yaml:4:66: stage 'a': 'resources.gpu' must be at least 0, not -1"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, resources: {custom: {a100: 0}}}",
         "pipeline.yaml:4:76: the amount of a100 must be more than 0, not 0"),
        ("a: {uses: text.upper, inputs: {text: inn.txt}}",
         "pipeline.yaml:4:40: inn.txt does not exist (did you mean 'in.txt'?)"),
        ("a: {uses: text.upper, inputs: {text: stages}}",
         "pipeline.yaml:4:40: stages is a folder, this input is a file"),
        ("a: {uses: text.upper, inputs: {text: ../x}}",
         "pipeline.yaml:4:40: '../x' is not a path inside the project (paths are relative to the pipeline's folder)"),
        ("a: {uses: text.upper, inputs: {text: /etc/passwd}}",
         "pipeline.yaml:4:40: '/etc/passwd' is not a path inside the project (paths are relative to the pipeline's folder)"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, with: {sufix: x}}",
         "pipeline.yaml:4:56: `with` of stage 'a' (text.upper) has no 'sufix' (did you mean 'suffix'?)"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, with: {times: two}}",
         "pipeline.yaml:4:63: `with` of stage 'a' (text.upper): 'times' must be a whole number, not 'two'"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, with: {times: 0}}",
         "pipeline.yaml:4:63: `with` of stage 'a' (text.upper): 'times' must be at least 1, not 0"),
        ("a: {uses: push.sagemaker, inputs: {package: in.txt}, with: {endpoint: e, inference_ami: al2-ami-sagemaker-inference-gpu-2}}",
         "pipeline.yaml:4:62: `with` of stage 'a' (push.sagemaker): `inference_ami: al2-ami-sagemaker-inference-gpu-2` is for instances with gpu, not ml.m5.large"),
        ("a: {uses: push.sagemaker, inputs: {package: in.txt}, with: {endpoint: e, autoscaling: {min: 3, max: 2, target: 9}}}",
         "pipeline.yaml:4:89: `with` of stage 'a' (push.sagemaker): 'autoscaling': `min` 3 is above `max` 2"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, timout: 3}",
         "pipeline.yaml:4:49: stage 'a' has no 'timout' (did you mean 'timeout'?)"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, timeout: soon}",
         "pipeline.yaml:4:58: 'soon' is not a duration such as 90s or 1h30m"),
        ('a: {uses: text.upper, inputs: {text: "${{ stages.b.outputs.text }}"}}',
         "pipeline.yaml:4:40: there is no stage 'b'"),
        ('a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "${{ vars.x }}"}}',
         "pipeline.yaml:4:64: there is no vars.x"),
        ('a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "${{ secrets.X }}!"}}',
         "pipeline.yaml:4:64: the secret X is part of a longer string, which would leak it "
         "(make it the whole value of a parameter)"),
        ('a: {uses: run.python, outputs: {o: o}, with: {function: "code.py:func", params: {p: {$secret: X}}}}',
         "pipeline.yaml:4:48: the name $secret is reserved (write a secret as ${{ secrets.NAME }})"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, needs: [b]}", "pipeline.yaml:4:57: there is no stage 'b'"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, matrix: {m: []}}",
         "pipeline.yaml:4:61: the matrix axis 'm' must be a list of values"),
        ("a: {uses: text.upper, inputs: {text: in.txt}, outputs: {x: y}}",
         "pipeline.yaml:4:59: the outputs of text.upper have fixed names (the outputs are text)"),
        ("a: {uses: run.command, outputs: {d: x/, f: ./x//y.txt}, with: {command: 'true'}}",
         "pipeline.yaml:4:43: the output 'f' (x/y.txt) is inside the output 'd' (give each output a path of its own)"),
        ("a: {uses: run.command, outputs: {f: x/y, d: x/}, with: {command: 'true'}}",
         "pipeline.yaml:4:44: the output 'f' (x/y) is inside the output 'd' (give each output"),
        ("a: {uses: run.command, outputs: {f: ./x, g: x}, with: {command: 'true'}}",
         "pipeline.yaml:4:44: the output 'g' has the path of the output 'f': x (give each output"),
        ("a: {uses: run.command, outputs: {f: x.txt, g: X.txt}, with: {command: 'true'}}",
         "pipeline.yaml:4:46: the output 'g' has the path of the output 'f', but for its case: X.txt (give each"),
        ("a: {uses: run.command, outputs: {f: ./}, with: {command: 'true'}}",
         "pipeline.yaml:4:36: f: './' is not a name and a path inside the outputs"),
        ('a: {uses: run.command, env: {E: "${{ env.E }}"}, with: {command: \'true\'}}',
         "pipeline.yaml:4:31: stage 'a': 'env' must be a list of strings, not a mapping (list the names: `env: [NAME]`; the "
         "pipeline's own `env: {NAME: null}` takes one from the environment)"),
        ("a: {uses: run.python, with: {function: nope.py:f}}", "pipeline.yaml:4:42: nope.py does not exist in"),
        ("a: {uses: run.python, with: {function: code.py:fnc}}",
         "pipeline.yaml:4:42: code.py defines no 'fnc' (did you mean 'func'?)"),
        ("a: {uses: run.python, with: {function: code}}",
         "pipeline.yaml:4:42: 'code' is not of the form 'path/to/file.py:function'"),
        ("1a: {uses: text.upper, inputs: {text: in.txt}}", "pipeline.yaml:4:3: '1a' is not a valid stage name"),
    ],
)  # fmt: skip
def test_a_problem_says_what_where_and_how_to_mend_it(project: Project, stages: str, said: str) -> None:
    project.write("code.py", "def func(ctx, inputs, outputs): pass\n")
    project.pipeline(stages)
    found = problems(project)
    assert len(found) == 1, found
    assert found[0].startswith(said)


def test_all_problems_of_a_file_are_reported_at_once(project: Project) -> None:
    project.write(
        "pipeline.yaml",
        """
        version: 1
        name: bad
        vrs: {}
        stages:
          a: {uses: text.uper}
          b: {uses: text.upper, inputs: {text: "${{ stages.z.outputs.text }}"}, with: {sufix: 1}}
          c: {uses: text.upper, inptus: {}}
        """,
    )
    assert [text.split(": ")[0] for text in problems(project)] == [
        "pipeline.yaml:3:1",
        "pipeline.yaml:5:13",
        "pipeline.yaml:6:40",
        "pipeline.yaml:6:80",
        "pipeline.yaml:7:25",
    ]


def test_a_cycle_is_named_whole(project: Project) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: "${{ stages.c.outputs.text }}"}}
        b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}}
        c: {uses: text.upper, inputs: {text: "${{ stages.b.outputs.text }}"}}
        """
    )
    assert problems(project) == [
        "pipeline.yaml:4:3: the stages depend on each other in a cycle: a → b → c → a "
        "(remove one of these references, or an entry of `needs`)"
    ]


def test_nothing_is_written_for_a_bad_pipeline(project: Project) -> None:
    project.pipeline("a: {uses: nope}")
    before = sorted(project.folder.rglob("*"))
    project.cli("run", exits=2)
    assert [p for p in sorted(project.folder.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_matrix_pairs_by_axis_and_fans_in(project: Project) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, matrix: {m: [x, y], n: [1, 2]}, inputs: {text: in.txt}, with: {suffix: "${{ matrix.m }}"}}
        b: {uses: text.upper, matrix: "${{ stages.a.matrix }}", inputs: {text: "${{ stages.a.outputs.text }}"}}
        all: {uses: text.join, inputs: {texts: {t: "${{ stages.b.outputs.text }}", one: in.txt}, more: "${{ stages.a.outputs.text }}"}}
        some: {uses: text.join, matrix: {m: [y]}, inputs: {texts: "${{ stages.b.outputs.text }}"}}
        one: {uses: text.upper, inputs: {text: "${{ stages.a[x,2].outputs.text }}"}}
        """
    )
    graph = compile_(project)
    assert [n for n in graph.stages if n.startswith("a")] == ["a[x,1]", "a[x,2]", "a[y,1]", "a[y,2]", "all"]
    assert graph.stages["a[y,1]"].params["suffix"] == "y"
    source = graph.stages["b[y,2]"].inputs["text"]
    assert isinstance(source, RefSource)
    assert source.stage == "a[y,2]"
    assert sorted(graph.stages["all"].inputs) == [
        "more/0", "more/1", "more/2", "more/3", "texts/one",
        "texts/t[x,1]", "texts/t[x,2]", "texts/t[y,1]", "texts/t[y,2]",
    ]  # fmt: skip
    assert sorted(graph.stages["some[y]"].inputs) == ["texts/b[y,1]", "texts/b[y,2]"]
    assert graph.stages["one"].upstream == ("a[x,2]",)


def test_a_fan_in_into_a_single_input_says_what_to_do(project: Project) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, matrix: {m: [x, y]}, inputs: {text: in.txt}}
        b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}}
        """
    )
    assert problems(project) == [
        "pipeline.yaml:5:40: stage 'a' has 2 instances, but this input takes one "
        "(select one, e.g. stages.a[x].outputs.text, or give this stage its matrix)"
    ]


def test_references_keep_their_type_and_overlays_and_set_come_last(project: Project) -> None:
    project.pipeline(
        'a: {uses: text.upper, inputs: {text: in.txt}, with: {times: "${{ vars.n }}", suffix: "v${{ vars.n }}"}}',
        head="vars: {n: 2}\n",
    )
    assert compile_(project).stages["a"].params == {"suffix": "v2", "times": 2}
    overlay = project.write("configs/other.yaml", "vars: {n: 3}\n")
    graph = compile_(project, overlays=[overlay])
    assert graph.stages["a"].params == {"suffix": "v3", "times": 3}
    assert graph.origins["vars.n"] == f"{overlay}:1:11"
    graph = compile_(project, overlays=[overlay], sets=["vars.n=4"])
    assert graph.stages["a"].params == {"suffix": "v4", "times": 4}
    assert graph.origins["vars.n"] == "--set vars.n=4"


def test_the_dry_run_overlay_is_the_default_and_null_removes(project: Project) -> None:
    project.pipeline(
        "a: {uses: text.upper, inputs: {text: in.txt}}\nb: {uses: text.upper, inputs: {text: in.txt}}"
    )
    project.write("configs/dry-run.yaml", "target: {name: here}\nstages: {b: null}\n")
    graph = compile_(project)
    assert list(graph.stages) == ["a"]
    assert graph.target == {"name": "here", "live": False}


def test_an_error_in_an_overlay_points_into_the_overlay(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    project.write("configs/dry-run.yaml", "stages:\n  a: {with: {sufix: 1}}\n")
    assert problems(project)[0].startswith("configs/dry-run.yaml:2:14: `with` of stage 'a'")


def test_vars_may_use_vars_but_not_in_a_circle(project: Project) -> None:
    stages = 'a: {uses: text.upper, inputs: {text: "${{ vars.file }}"}}'
    project.pipeline(stages, head='vars: {file: "${{ vars.stem }}.txt", stem: in}\n')
    source = compile_(project).stages["a"].inputs["text"]
    assert isinstance(source, PathSource)
    assert source.path == "in.txt"
    project.pipeline(stages, head='vars: {file: "${{ vars.stem }}", stem: "${{ vars.file }}"}\n')
    assert "in a cycle" in problems(project)[0]


def test_a_required_variable_of_the_environment_is_asked_for(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head="env: {NOPE: null}\n")
    assert problems(project) == [
        "pipeline.yaml:3:7: the environment variable NOPE is not set (export NOPE=…)"
    ]


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (
            "{name: kubernetes}",
            "pipeline.yaml:3:18: the executor: 'name' must be 'local' or 'ray', not 'kubernetes'",
        ),
        (
            "{address: 'ray://head:10001'}",
            "pipeline.yaml:3:21: the executor local has no address (add `name: ray`)",
        ),
        (
            "{name: ray, adress: x}",
            "pipeline.yaml:3:23: the executor has no 'adress' (did you mean 'address'?)",
        ),
    ],
)
def test_a_wrong_executor_says_what_is_possible(project: Project, executor: str, said: str) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head=f"executor: {executor}\n")
    assert problems(project) == [said]


def test_a_wrong_set_expression_is_a_usage_error(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    with pytest.raises(UsageError, match="is not PATH=VALUE"):
        compile_(project, sets=["vars"])


def test_the_import_closure_of_user_code_is_in_the_graph(project: Project) -> None:
    project.write("steps/main.py", "from .near import x\nimport far\nimport json\ndef f(ctx, i, o): pass\n")
    project.write("steps/near.py", "x = 1\n")
    project.write("far.py", "def g():\n    import steps.deep\n")
    project.write("steps/deep.py", "")
    project.write("other.py", "")
    project.pipeline("a: {uses: run.python, with: {function: steps/main.py:f}}")
    assert [f.name for f in compile_(project).stages["a"].code] == [
        "far.py", "steps/deep.py", "steps/main.py", "steps/near.py",
    ]  # fmt: skip


def test_a_broken_stage_file_is_named_with_its_line(project: Project) -> None:
    project.write("stages/broken.py", "x = 1\nraise RuntimeError('no')\n")
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    found = problems(project)
    assert found[0].startswith("stages/broken.py:2:1: the file can't be imported: RuntimeError: no")


def test_a_project_may_not_shadow_a_built_in_stage_type(project: Project) -> None:
    own = (
        'from deploy_runner.sdk import Stage\nclass Mine(Stage):\n    """Mine."""\n    uses = "run.command"\n'
    )
    project.write("stages/mine.py", own)
    project.pipeline("a: {uses: run.command, with: {command: 'true'}}")
    assert "the stage type 'run.command' is already defined in run/command.py" in problems(project)[0]
