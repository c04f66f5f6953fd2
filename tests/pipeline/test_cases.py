"""Small inputs of strangers, one folder of `tests/cases` each: what is made of them computes what they do.

"Right" is: the converted file equals the original under plain PyTorch, at sizes that the pipeline never
saw, to the rounding of its type. The originals are loaded here without a line of ours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Project, module_of

CASES = Path(__file__).parent.parent / "cases"

Arrays = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator], Arrays]


def normal(**shapes: tuple[int, ...]) -> Draw:
    return lambda rng: {name: rng.standard_normal(shape, "f4") for name, shape in shapes.items()}


@dataclass
class Made:
    """One stage's model file, run by its own runtime."""

    stage: str
    path: Path

    def __call__(self, arrays: Arrays, names: list[str]) -> list[np.ndarray]:
        if self.path.is_dir() and (self.path / "model.onnx").exists():
            import onnxruntime

            session = onnxruntime.InferenceSession(self.path / "model.onnx")
            wanted = {i.name: i.type for i in session.get_inputs()}
            found = session.run(None, {name: arrays[name] for name in wanted})
            order = {o.name: i for i, o in enumerate(session.get_outputs())}
            return [found[order[n]] for n in names] if names and set(names) <= set(order) else found
        tensors = [torch.from_numpy(array) for array in arrays.values()]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return leaves(self._program()(*tensors))

    def _program(self) -> Callable[..., Any]:
        if self.path.suffix == ".pt2":
            exported: Callable[..., Any] = torch.export.load(self.path).module()
            return exported
        if self.path.suffix == ".ptl":
            from torch.jit.mobile import _load_for_lite_interpreter

            lite: Callable[..., Any] = _load_for_lite_interpreter(str(self.path))
            return lite
        program: Callable[..., Any] = torch.jit.load(self.path)
        return program


def leaves(value: Any) -> list[np.ndarray]:
    from torch.utils import _pytree

    return [t.detach().float().numpy() for t in _pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


class Brought(Project):
    """A case's folder as its owner would bring it."""

    def __init__(self, folder: Path, name: str) -> None:
        shutil.copytree(CASES / name, folder)
        super().__init__(folder)
        subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)

    def model(self) -> Any:
        """Return the module `model.py` as plain Python imports it."""
        return module_of(self.folder / "model.py")

    def original(self) -> torch.nn.Module:
        """Return the model with its weights, by torch's own means."""
        module: torch.nn.Module = self.model().build()
        weights = torch.load(self.folder / "ck.pt", weights_only=True)
        module.load_state_dict(weights)
        return module.eval()

    def file(self, stage: str, suffix: str, *given: str) -> Made:
        place = self.folder / "made" / f"{stage}{suffix}"
        self.cli("get", f"{stage}.model", "--to", str(place), *given)
        return Made(stage, place)


SUFFIXES = {"trace": ".pt", "script": ".pt", "tdyn8": ".pt", "tst8": ".pt", "pt2": ".pt2", "lite": ".ptl"}


def expected(module: torch.nn.Module, arrays: Arrays) -> tuple[list[str], list[np.ndarray]]:
    with torch.no_grad():
        result = module(**{n: torch.from_numpy(a) for n, a in arrays.items()})
    names = list(result) if isinstance(result, Mapping) else []
    return names, leaves(result)


def assert_right(made: Made, module: torch.nn.Module, draw: Draw) -> None:
    for seed in range(3):
        arrays = draw(np.random.default_rng(seed + 99))
        order, right = expected(module, arrays)
        for want, got in zip(right, made(arrays, order), strict=True):
            assert got.shape == want.shape, made.stage
            finite = np.isfinite(want)
            np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=made.stage)
            scale = float(np.abs(want[finite]).max(initial=1e-9))
            eps = 2.0**-8 if next(module.parameters()).dtype == torch.bfloat16 else 2.0**-23
            worst = float(np.abs(got[finite].astype("f8") - want[finite]).max(initial=0))
            assert worst <= 64 * eps * scale, f"{made.stage} is off by {worst} of {scale}"


def cosine(made: Made, module: torch.nn.Module, arrays: Arrays) -> float:
    order, right = expected(module, arrays)
    rows = []
    for want, got in zip(right, made(arrays, order), strict=True):
        finite = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(got), finite)
        a, b = got[finite].astype("f8"), want[finite].astype("f8")
        rows.append(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
    return min(rows)


@pytest.fixture
def brought(tmp_path: Path, request: pytest.FixtureRequest) -> Brought:
    return Brought(tmp_path / "project", request.param)


def case(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("brought", [name], ids=[name], indirect=True)


def rows(brought: Brought, exits: int, *sets: str) -> dict[str, dict[str, Any]]:
    """Run the pipeline; return stage → what the run says of it."""
    record = brought.run(*(part for given in sets for part in ("--set", given)), exits=exits)
    stages: dict[str, dict[str, Any]] = record["stages"]
    return stages


def assert_stages_right(brought: Brought, draw: Draw, *stages: str) -> None:
    rows(brought, 0)
    for stage in stages:
        assert_right(brought.file(stage, SUFFIXES.get(stage, "")), brought.original(), draw)


@case("length-baked-behind-samples")
def test_a_length_that_a_converter_bakes_in_is_refused_though_all_samples_have_one_length(
    brought: Brought,
) -> None:
    found = rows(brought, 1)
    assert found["onnx"]["state"] == "ran"
    for stage, row in found.items():
        if row["state"] == "failed":
            assert "length" in row["error"], stage
        elif stage in ("onnx", "onnx17", "trace", "lite"):
            assert_right(
                brought.file(stage, SUFFIXES.get(stage, "")), brought.original(), normal(x=(3, 24, 4))
            )
        elif stage == "tdyn8":
            x = np.random.default_rng(1).standard_normal((3, 24, 4), "f4")
            assert cosine(brought.file(stage, ".pt"), brought.original(), {"x": x}) > 0.99


@case("tied-transposed")
def test_views_of_one_storage_are_not_one_tensor(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(6, 6)), "onnx", "trace")


@case("optional-argument-skipped")
def test_an_optional_argument_that_is_skipped_stays_skipped(brought: Brought) -> None:
    draw = normal(x=(3, 4), shift=(3, 4))
    assert_stages_right(brought, draw, "onnx", "onnx17", "trace", "script", "pt2", "lite")
    arrays = draw(np.random.default_rng(0))
    assert cosine(brought.file("tdyn8", ".pt"), brought.original(), arrays) > 0.99


@case("keyword-only-argument")
def test_an_argument_given_by_its_name_only_reaches_it(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(3, 4), shift=(3, 4)), "onnx", "onnx17", "trace", "pt2")


@case("batch-on-axis-1")
def test_the_batch_is_the_axis_of_that_label(brought: Brought) -> None:
    draw = normal(x=(10, 3, 6), h0=(4, 3, 8))
    assert_stages_right(brought, draw, "onnx", "onnx17", "trace", "pt2", "opt")
    arrays = draw(np.random.default_rng(0))
    assert cosine(brought.file("dyn8", ""), brought.original(), arrays) > 0.98


@pytest.mark.slow
@case("input-without-batch")
def test_an_input_without_a_batch_is_left_whole(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(5, 6, 8), attn_mask=(6, 6)), "onnx", "trace")


@pytest.mark.slow
@case("label-batch_size")
def test_any_label_may_name_the_batch(brought: Brought) -> None:
    assert_stages_right(brought, normal(input=(7, 3, 8, 8)), "onnx", "trace", "pt2")


@pytest.mark.slow
@case("weight-norm-old-names")
def test_what_load_state_dict_renames_is_taken(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(5, 3, 9)), "onnx", "trace", "pt2")


@case("extra-state")
def test_a_state_that_is_no_tensor_comes_along(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(5, 4)), "onnx")


@pytest.mark.slow
@case("factory-on-meta")
def test_a_factory_may_build_without_memory(brought: Brought) -> None:
    rows(brought, 0)
    module = brought.model().Net()
    module.load_state_dict(torch.load(brought.folder / "ck.pt", weights_only=True))
    for stage in ("onnx", "trace"):
        assert_right(brought.file(stage, SUFFIXES.get(stage, "")), module.eval(), normal(x=(5, 6)))


@pytest.mark.slow
@case("child-called-module")
def test_a_child_may_have_the_name_of_a_training_wrapper(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(5, 4)), "onnx")


@case("training-only-keys")
def test_keys_of_training_alone_are_dropped_by_name_and_listed(brought: Brought) -> None:
    refused = rows(brought, 1)["model"]["error"]
    assert "loss_scale" in refused
    assert "allow_unexpected" in refused
    found = rows(brought, 0, 'stages.model.with.allow_unexpected=["loss_*", "position_ids"]')
    assert "loss_scale" in str(found["model"]["figures"])
    assert "position_ids" in str(found["model"]["figures"])


@pytest.mark.slow
@case("minus-inf-outputs")
def test_minus_infinity_equals_minus_infinity_where_it_is_declared(brought: Brought) -> None:
    assert "nonfinite" in rows(brought, 1)["model"]["error"]
    allow = "stages.model.with.nonfinite=allow"
    rows(brought, 0, allow)
    rng = np.random.default_rng(5)
    allowed = rng.random((7, 5)) > 0.3
    arrays = {"x": rng.standard_normal((7, 4), "f4"), "allowed": allowed}
    assert_right(brought.file("onnx", "", "--set", allow), brought.original(), lambda _: arrays)
    for stage in ("st8", "dyn8"):
        assert cosine(brought.file(stage, "", "--set", allow), brought.original(), arrays) > 0.98


@case("bfloat16")
def test_bfloat16_is_judged_by_its_own_rounding(brought: Brought) -> None:
    assert_stages_right(brought, normal(x=(5, 4)), "onnx", "trace", "pt2")


@case("int8-saturates")
def test_int8_does_not_saturate_on_any_x86(brought: Brought) -> None:
    import onnx

    rows(brought, 0)
    made = brought.file("int8", "")
    kinds = {i.data_type for i in onnx.load(made.path / "model.onnx").graph.initializer if len(i.dims) == 2}
    assert kinds == {onnx.TensorProto.UINT8}
    x = np.random.default_rng(1).standard_normal((64, 16), "f4")
    want = brought.original()(torch.from_numpy(x)).detach().numpy()
    assert np.abs(made({"input": x}, [])[0] - want).max() < 0.05


@pytest.mark.slow
@case("causal-mask-static-int8")
def test_a_mask_among_the_constants_ruins_no_int8_model(brought: Brought) -> None:
    found = brought.cli("run", "--json", exits=None).stdout.splitlines()[-1]
    x = {"x": np.random.default_rng(1).standard_normal((5, 6, 8), "f4")}
    refused = {"tst8": "aten::bmm.out has no int8 form", "ent": "entropy clips values that matter"}
    for stage, row in json.loads(found)["stages"].items():
        if stage in ("st8", "st8q", "dyn8", "fp16", "pct", "ent", "tst8"):
            if row["state"] == "failed":
                assert refused[stage] in row["error"], row["error"]
            else:
                assert cosine(brought.file(stage, SUFFIXES.get(stage, "")), brought.original(), x) > 0.98, (
                    stage
                )


@case("constants-not-quantized")
def test_weights_in_constant_nodes_are_quantized(brought: Brought) -> None:
    import onnx

    rows(brought, 0)
    made = brought.file("int8", "")
    model = onnx.load(made.path / "model.onnx")
    kinds = {i.data_type for i in model.graph.initializer if 64 in (np.prod(i.dims),)}
    assert kinds <= {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    assert kinds
    weight = onnx.numpy_helper.to_array(onnx.load(brought.folder / "model.onnx").graph.node[0].attribute[0].t)
    x = np.random.default_rng(1).standard_normal((32, 16), "f4")
    assert np.abs(made({"x": x}, [])[0] - x @ weight).max() < 0.1


@pytest.mark.slow
@case("output-named-like-an-operator")
def test_names_of_outputs_are_the_users_whatever_the_graph_calls_its_own(brought: Brought) -> None:
    import onnx

    draw = normal(x=(5, 4))
    assert_stages_right(brought, draw, "onnx", "onnx17", "trace", "pt2", "opt")
    arrays = draw(np.random.default_rng(0))
    for stage in ("onnx", "onnx17", "opt", "dyn8", "st8"):
        made = (
            brought.file(stage, "")
            if stage in ("dyn8", "st8")
            else Made(stage, brought.folder / "made" / stage)
        )
        graph = onnx.load(made.path / "model.onnx").graph
        assert [o.name for o in graph.output] == ["linear", "relu", "add"]
        assert cosine(made, brought.original(), arrays) > 0.98


@pytest.mark.slow
@case("sizes-in-multiples")
def test_an_axis_may_take_multiples_only(brought: Brought) -> None:
    draw = normal(x=(2, 3, 44, 68))
    multiple = "stages.model.with.dynamic={x: {0: batch, 2: {name: height, multiple_of: 4, min: 8, max: 256}, 3: {name: width, multiple_of: 4, min: 8, max: 256}}}"
    plain = brought.cli("run", "--json", exits=None)
    if plain.returncode:
        assert "multiple_of" in plain.stdout
    rows(brought, 0, multiple)
    assert_right(brought.file("onnx", ""), brought.original(), draw)


def test_every_case_has_its_test() -> None:
    text = Path(__file__).read_text("utf-8")
    without = [folder.name for folder in CASES.iterdir() if f'@case("{folder.name}")' not in text]
    assert not without
