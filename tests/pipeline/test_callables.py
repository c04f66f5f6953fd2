"""A function or class named as `package.module:name`: of an installed library, or a module of the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.conftest import Project
from tests.installed import installed

EXPORTED = """
weights: {{uses: checkpoint.state_dict, inputs: {{checkpoint: weights.pt}}}}
model: {{uses: model.prepare, inputs: {{weights: "${{{{ stages.weights.outputs.weights }}}}"}},
        with: {{factory: "{factory}", kwargs: {kwargs}, example: {{shape: [2, 3, 48, 48]}}}}}}
onnx: {{uses: onnx.export, inputs: {{model: "${{{{ stages.model.outputs.model }}}}"}}}}
"""


def timm_net() -> torch.nn.Module:
    import timm

    net: torch.nn.Module = timm.create_model("resnet10t", num_classes=5)
    return net


def torchvision_net() -> torch.nn.Module:
    from torchvision.models import shufflenet_v2_x0_5

    net: torch.nn.Module = shufflenet_v2_x0_5(num_classes=5)
    return net


@pytest.mark.parametrize(
    ("build", "factory", "kwargs"),
    [
        (timm_net, "timm:create_model", "{model_name: resnet10t, num_classes: 5}"),
        pytest.param(
            torchvision_net,
            "torchvision.models:shufflenet_v2_x0_5",
            "{num_classes: 5}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_of_an_installed_library_needs_no_file(
    project: Project, build: object, factory: str, kwargs: str
) -> None:
    assert callable(build)
    torch.manual_seed(1)
    net = build().eval()
    torch.save(net.state_dict(), project.folder / "weights.pt")
    project.pipeline(EXPORTED.format(factory=factory, kwargs=kwargs))
    assert set(project.states().values()) == {"ran"}
    x = torch.randn(3, 3, 48, 48)
    project.cli("get", "onnx.model", "--to", "taken")
    session = onnxruntime.InferenceSession(project.folder / "taken/model.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], net(x), atol=1e-4)


def test_its_package_is_in_the_key(project: Project, tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    env = {"PYTHONPATH": str(libs)}
    project.pipeline('a: {uses: run.python, with: {function: "helper:Steps.write"}, outputs: {o: o.txt}}')
    source = "class Steps:\n    def write(ctx, inputs, outputs): outputs['o'].write_text('{}')\n"
    installed(libs, "helper", "1.0", source.format("one"))
    assert project.states(**env) == {"a": "ran"}
    assert project.states(**env) == {"a": "hit"}
    installed(libs, "helper", "1.1", source.format("two"))
    assert "helper 1.0 → 1.1" in project.cli("explain", "a", **env).stdout
    assert project.states(**env) == {"a": "ran"}
    assert project.output("a.o", **env) == b"two"


def test_a_module_of_the_project_is_in_the_key_with_what_it_imports(project: Project) -> None:
    project.write("nets/parts.py", "word = 'one'\n")
    project.write(
        "nets/small.py",
        """
        from nets import parts

        def write(ctx, inputs, outputs):
            outputs["o"].write_text(parts.word)
        """,
    )
    project.pipeline('a: {uses: run.python, with: {function: "nets.small:write"}, outputs: {o: o.txt}}')
    assert project.states() == {"a": "ran"}
    assert project.output("a.o") == b"one"
    project.write("nets/parts.py", "word = 'two'\n")
    assert "code nets/parts.py changed" in project.cli("explain", "a").stdout
    assert project.states() == {"a": "ran"}
    assert project.output("a.o") == b"two"


@pytest.mark.parametrize(
    ("code", "exits", "said"),
    [
        ("timm", 2, "'timm' is not of the form 'path/to/file.py:function' or 'package.module:function'"),
        ("timm..models:x", 2, "'timm..models:x' is not of the form"),
        ("tranformers:x", 2, "the module tranformers is not installed, nor a file of"),
        ("peft:PeftModel", 2, "(pip install peft)"),
        ("nets.large:write", 2, "the module nets.large is not installed, nor a file of"),
        ("nets.small:wirte", 2, "nets.small defines no 'wirte' (did you mean 'write'?)"),
        ("timm:create_modl", 1, "timm defines no 'create_modl' (did you mean 'create_model'?)"),
        ("timm.modls:x", 1, "there is no module timm.modls"),
    ],
)
def test_a_wrong_name_is_one_sentence(project: Project, code: str, exits: int, said: str) -> None:
    project.write("nets/small.py", "def write(ctx, inputs, outputs): ...\n")
    project.pipeline(f'a: {{uses: run.python, with: {{function: "{code}"}}, outputs: {{o: o.txt}}}}')
    done = project.cli("run", exits=exits)
    assert said in done.stdout + done.stderr
    assert exits == 1 or "pipeline.yaml:4:" in done.stderr


def test_a_factory_that_downloads_is_refused(project: Project) -> None:
    torch.save(timm_net().state_dict(), project.folder / "weights.pt")
    kwargs = "{model_name: resnet10t, pretrained: true}"
    project.pipeline(EXPORTED.format(factory="timm:create_model", kwargs=kwargs))
    done = project.cli("run", exits=1)
    assert "timm:create_model fails: " in done.stdout + done.stderr
    assert "it may not read files or download" in done.stdout + done.stderr
