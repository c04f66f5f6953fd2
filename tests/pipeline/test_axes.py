"""Dynamic axes of strangers' models: found, varied, converted and measured along what they label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.stages.model.bundles import load_bundle
from deploy_runner.stages.model.fresh_inputs import from_cases, from_samples
from deploy_runner.testing import StageRun, run_stage
from tests.axes import EXAMPLES, MODELS, exported, prepared
from tests.bundles import stage
from tests.conftest import module_of

Arrays = dict[str, np.ndarray[Any, Any]]


def drawn(name: str, seed: int = 0, **shapes: tuple[int, ...]) -> Arrays:
    """Return inputs of these shapes by what a model's example says."""
    generator = np.random.default_rng(seed)
    given = EXAMPLES[name]["example"]
    return {
        n: generator.integers(0, given[n]["high"], shape, given[n]["dtype"])
        if "high" in given[n]
        else generator.standard_normal(shape, np.float32)
        for n, shape in shapes.items()
    }


def eager(name: str, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    """Return what the model computes, without a line of ours."""
    torch.manual_seed(0)
    module = getattr(module_of(MODELS / "axes.py"), name)().eval()
    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in arrays.values()))
    return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]


def made_by(path: Path, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    """Run a converted file by its own runtime."""
    if path.is_dir():
        session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
        return list(session.run(None, arrays))
    program = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)
    with torch.no_grad():
        result = program(*(torch.from_numpy(array) for array in arrays.values()))
    return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]


UNSEEN: dict[str, dict[str, tuple[int, ...]]] = {
    "speech": {"frames": (11, 4, 6), "state": (2, 4, 8)},
    "sampler": {"x": (7, 4), "temperature": ()},
    "segmenter": {"picture": (3, 3, 128, 64)},
    "matcher": {"query": (3, 4), "gallery": (23, 4)},
    "reader": {"tokens": (17, 3), "mask": (17, 17)},
    "last": {"x": (9, 4, 7)},
    "pooled": {"x": (31, 4)},
    "wave": {"signal": (29, 4)},
    "mirrored": {"signal": (29, 4)},
    "graph": {"nodes": (14, 4), "edges": (2, 31)},
    "camera": {"picture": (3, 41, 6, 3)},
}
BATCHES: dict[str, tuple[int | None, ...]] = {
    "speech": (1, 1),
    "sampler": (0, None),
    "segmenter": (0,),
    "matcher": (0, None),
    "reader": (1, None),
    "last": (2,),
    "pooled": (None,),
    "wave": (None,),
    "mirrored": (None,),
    "graph": (None, None),
    "camera": (0,),
}
"""The axis of the samples in each input: where nothing is called a batch, what stands first is no such."""


def assert_right(name: str, path: Path) -> None:
    arrays = drawn(name, 0, **UNSEEN[name])
    arrays = {n: np.asarray(array) for n, array in arrays.items()}
    for expected, actual in zip(eager(name, arrays), made_by(path, arrays), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_converted_is_right_at_sizes_that_were_never_run(tmp_path: Path, name: str) -> None:
    bundle = prepared(name, tmp_path)
    described = json.loads((bundle / "bundle.json").read_text())
    assert tuple(port["batch"] for port in described["inputs"]) == BATCHES[name]
    for axes in EXAMPLES[name]["dynamic"].values():
        labels = {axis if isinstance(axis, str) else axis["name"] for axis in axes.values()}
        assert labels <= {axis["label"] for axis in described["axes"]}
    assert_right(name, run_stage(stage("torch.trace"), tmp_path / "t", inputs={"model": bundle})["model"])
    assert_right(name, exported(bundle, tmp_path))


def test_the_sizes_that_torch_export_needs_are_said_and_then_suffice(tmp_path: Path) -> None:
    plain = prepared("camera", tmp_path, dynamic={"picture": {0: "batch", 1: "height", 2: "width"}})
    said = r"declare \{name: height, min: 5\}, \{name: width, min: 5\} in model.prepare's `dynamic`"
    for name in ("torch.export", "mobile.executorch"):
        with pytest.raises(StageError, match=said):
            run_stage(stage(name), tmp_path / name, inputs={"model": plain})
    (tmp_path / "said").mkdir()
    bundle = prepared("camera", tmp_path / "said")
    assert_right(
        "camera", run_stage(stage("torch.export"), tmp_path / "e", inputs={"model": bundle})["model"]
    )


@pytest.mark.parametrize(("name", "fixed"), [("speech", "time"), ("segmenter", None), ("matcher", None)])
def test_an_axis_that_a_converter_fixes_is_a_failure(tmp_path: Path, name: str, fixed: str | None) -> None:
    """torch.export unrolls an LSTM over time; other models it takes at any size, phones' runtime too."""
    bundle = prepared(name, tmp_path)
    for uses in ("torch.export", "mobile.executorch"):
        if fixed:
            with pytest.raises(StageError, match=f"the model fixes the dynamic axis '{fixed}'"):
                run_stage(stage(uses), tmp_path / uses, inputs={"model": bundle})
            continue
        made = run_stage(stage(uses), tmp_path / uses, inputs={"model": bundle})
        if uses == "torch.export":
            assert_right(name, made["model"])


def test_an_image_is_tried_with_cases_in_which_each_axis_varies(tmp_path: Path) -> None:
    """A graph's nodes and edges vary one after the other, so that two cases are too few."""
    bundle = prepared("graph", tmp_path)
    inputs = {"model": exported(bundle, tmp_path), "reference": bundle}
    context = run_stage(stage("package.container"), tmp_path / "c", inputs=inputs)["context"]
    with np.load(context / "model" / "cases.npz") as arrays:
        nodes = {a.shape[0] for name, a in arrays.items() if name.endswith("in/nodes")}
        edges = {a.shape[1] for name, a in arrays.items() if name.endswith("in/edges")}
    assert len(nodes) > 1
    assert len(edges) > 1


def quantized(tmp_path: Path, name: str, bundle: Path, model: Path, **inputs: Any) -> StageRun:
    params = inputs.pop("params", {})
    return run_stage(
        stage("onnx.quantize_static"), tmp_path / name, project=tmp_path,
        inputs={"model": model, "reference": bundle, **inputs}, params={"per_channel": False, **params},
    )  # fmt: skip


def test_calibration_samples_are_cut_along_the_batch(tmp_path: Path) -> None:
    """Tokens [length, batch] and a mask for all: from an .npz as the model takes them, or one by one."""
    bundle = prepared("reader", tmp_path)
    model = exported(bundle, tmp_path)
    arrays = drawn("reader", tokens=(12, 24), mask=(12, 12))
    np.savez(tmp_path / "c.npz", allow_pickle=False, **arrays)
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def samples(_):\n"
        f"    arrays = np.load({str(tmp_path / 'c.npz')!r})\n"
        "    for i in range(24):\n"
        "        yield {'tokens': arrays['tokens'][:, i], 'mask': arrays['mask']}\n"
    )
    one = quantized(tmp_path, "npz", bundle, model, calibration=tmp_path / "c.npz")
    other = quantized(tmp_path, "function", bundle, model, params={"function": "data.py:samples"})
    assert one.figures["calibration_samples"] == other.figures["calibration_samples"] == 24
    assert (one["model"] / "model.onnx").read_bytes() == (other["model"] / "model.onnx").read_bytes()
    np.savez(tmp_path / "turned.npz", tokens=arrays["tokens"][:, :, None], mask=arrays["mask"])
    with pytest.raises(StageError, match=r"a sample of 'tokens' has the shape \(12, 1\), the model takes"):
        quantized(tmp_path, "turned", bundle, model, calibration=tmp_path / "turned.npz")


def test_what_is_no_sample_is_calibrated_on_whole(tmp_path: Path) -> None:
    """The ONNX file calls its first axis nodes; that they aren't samples is what the bundle knows."""
    bundle = prepared("graph", tmp_path)
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def samples(_):\n"
        "    for i in range(16):\n"
        "        generator = np.random.default_rng(i)\n"
        "        edges = generator.integers(0, 6, (2, 9 + i % 2))\n"
        "        yield {'nodes': generator.standard_normal((6, 4), np.float32), 'edges': edges}\n"
    )
    made = quantized(
        tmp_path, "q", bundle, exported(bundle, tmp_path), params={"function": "data.py:samples"}
    )
    assert made.figures["calibration_samples"] == 16


def test_a_mask_that_all_samples_share_is_not_blended(tmp_path: Path) -> None:
    """Fresh inputs are made of two samples each; of a mask of -inf that would make NaN, which hides all."""
    causal = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    np.savez(tmp_path / "s.npz", tokens=drawn("reader", tokens=(6, 8))["tokens"], mask=causal)
    cases = load_bundle(prepared("reader", tmp_path, tmp_path / "s.npz")).cases
    samples: list[Any] = [
        {n: case.sample(f"in/{n}", a, 0) for n, a in case.inputs.items()} for case in cases[:1] * 2
    ]
    samples[1]["tokens"] = (samples[1]["tokens"] + 1) % 20
    for case, fresh in [*zip(cases, from_cases(cases), strict=True),
                        *((cases[0], fresh) for fresh in from_samples(samples))]:  # fmt: skip
        assert np.array_equal(fresh["mask"], case.inputs["mask"])
        assert fresh["tokens"].shape[0] == case.inputs["tokens"].shape[0]
    assert not np.array_equal(next(from_cases(cases))["tokens"], cases[0].inputs["tokens"])


def test_accuracy_is_measured_along_the_batch(tmp_path: Path) -> None:
    """70 samples on axis 1, more than run at once; a mask that all of them share."""
    bundle = prepared("reader", tmp_path)
    model = exported(bundle, tmp_path)
    arrays = drawn("reader", tokens=(12, 70), mask=(12, 12))
    answers = eager("reader", arrays)[0].argmax(-1)
    labels = np.where(np.arange(70) % 10 < 7, answers, (answers + 1) % 3)
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays, y=labels)
    for reference in (bundle, None):
        made = run_stage(
            stage("verify.accuracy"), tmp_path / f"a-{reference is None}",
            inputs={"candidate": model, "reference": reference, "data": tmp_path / "d.npz"},
            params={"min_accuracy": 69.0},
        )  # fmt: skip
        assert made.figures["accuracy"] == 70.0
    np.savez(tmp_path / "d.npz", tokens=arrays["tokens"].T, mask=arrays["mask"], y=labels)
    with pytest.raises(StageError, match=r"there are 70 labels `y`, but 'tokens' has the shape \(70, 12\)"):
        run_stage(
            stage("verify.accuracy"), tmp_path / "wrong",
            inputs={"candidate": model, "reference": bundle, "data": tmp_path / "d.npz"},
        )  # fmt: skip
