"""model.onnx: what it finds out about files of strangers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.pipeline.strangers import (
    BOOL,
    FLOAT,
    INT64,
    arrays_of,
    described,
    details,
    dims_of,
    node,
    perceptron,
    pictures,
    samples,
    save,
    sizes_of,
    take,
    tokens,
    voice,
    weight,
    whole,
)


def test_a_file_without_anything_to_add_is_kept_byte_by_byte(tmp_path: Path) -> None:
    file = perceptron(tmp_path)
    model = onnx.load(file)
    graph = onnx.ModelProto(graph=model.graph)
    model.ClearField("graph")
    file.write_bytes(graph.SerializeToString() + model.SerializeToString())  # In another order than ours.
    made = take(tmp_path, file)
    assert (made["onnx"] / "model.onnx").read_bytes() == file.read_bytes()
    assert sorted(p.name for p in made["onnx"].iterdir()) == ["model.onnx"]
    assert sorted(p.name for p in made["model"].iterdir()) == ["bundle.json", "model.onnx", "reference.npz"]
    assert sizes_of(made, "x", 0) == {1, 2, 5}
    assert described(made)["inputs"][0]["batch"] == 0
    assert details(made)["batch of one agrees"].startswith("relative difference")


def test_an_old_file_with_its_weights_as_inputs_and_no_names_of_axes(tmp_path: Path) -> None:
    made = take(tmp_path, perceptron(tmp_path, (None, 8), opset=9, ir=3))
    model = onnx.load(made["onnx"] / "model.onnx")
    assert dims_of(model.graph.input) == {"x": ["batch", 8]}
    assert dims_of(model.graph.output) == {"y": ["batch", 4]}
    assert [o.version for o in model.opset_import] == [9]
    assert details(made)["valid ONNX"] == "onnx.checker agrees"
    assert sizes_of(made, "x", 0) == {1, 2, 5}


def test_a_voice_model_is_run_at_lengths_of_sounds(tmp_path: Path) -> None:
    made = take(tmp_path, voice(tmp_path))
    assert sizes_of(made, "x", 1) == {16000, 11997, 20003}
    assert described(made)["outputs"][0]["dynamic"] == {"0": "batch", "1": "y_1"}
    assert "the sizes of T are guessed" in details(made)["inputs"]


@pytest.mark.parametrize("size", [28, 48, 96, 20])
def test_sizes_are_found_that_the_last_layer_fits(tmp_path: Path, size: int) -> None:
    made = take(tmp_path, pictures(tmp_path, size, ("N", 3, "h", "w")))
    side = (size + 1) // 2
    assert sizes_of(made, "x", 2) == sizes_of(made, "x", 3) == {2 * side - 1, 2 * side}


def test_where_no_size_fits_the_axis_and_the_line_are_named(tmp_path: Path) -> None:
    file = pictures(tmp_path, 37, ("N", 3, "h", "w"))
    with pytest.raises(
        StageError, match=r"no sizes were found for 'h' \(axis 2 of 'x'\), 'w' \(axis 3 of 'x'\)"
    ) as error:
        take(tmp_path, file)
    assert error.value.fix == (
        "set `sizes: {h: {example: N}, w: {example: N}}` to ones that it takes, or give real `samples`"
    )
    made = take(tmp_path / "said", file, sizes={"h": {"example": 37}, "w": {"example": 38}})
    assert sizes_of(made, "x", 2) == {37, 38}
    assert "guessed" not in details(made)["inputs"]


def test_an_axis_of_one_size_is_refused_until_it_is_said(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r w", "y")]
    file = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ("batch", 2, 4))}, {"y": (FLOAT, ("batch", 4))},
                [whole("shape", 1, 8), weight("w", 8, 4)])  # fmt: skip
    with pytest.raises(
        StageError, match=r"the axis 'batch' \(axis 0 of 'x'\) works only with size 1"
    ) as error:
        take(tmp_path, file)
    assert error.value.fix == "set `sizes: {batch: 1}`"
    made = take(tmp_path / "said", file, sizes={"batch": 1})
    assert dims_of(onnx.load(made["onnx"] / "model.onnx").graph.input) == {"x": [1, 2, 4]}
    assert dims_of(onnx.load(made["onnx"] / "model.onnx").graph.output) == {"y": [1, 4]}
    assert len(made.figures["cases"]) == 4


def test_a_range_is_run_at_both_ends(tmp_path: Path) -> None:
    made = take(tmp_path, voice(tmp_path), sizes={"T": {"min": 800, "max": 9600, "multiple_of": 160}})
    assert {800, 9600} <= sizes_of(made, "x", 1)
    assert all(size % 160 == 0 for size in sizes_of(made, "x", 1))
    assert {"label": "T", "multiple_of": 160, "min": 800, "max": 9600} in described(made)["axes"]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"t": 9}, "sizes: no input has an axis 't'; there are T, batch"),
        ({"T": {"min": 9, "max": 8}}, "sizes: no size of 'T' is from 9 to 8"),
        ({"T": {"max": 999, "example": 1000}}, "sizes: the example 1000 of 'T' is not from 1 to 999"),
        ({"T": {"example": 100}}, "no sizes were found for 'T'"),
    ],
)
def test_wrong_sizes_are_one_sentence(tmp_path: Path, sizes: Any, said: str) -> None:
    with pytest.raises(StageError, match=said):
        take(tmp_path, voice(tmp_path), sizes=sizes)


def test_ids_stay_in_their_table_and_masks_are_padded_on_the_right(tmp_path: Path) -> None:
    arrays = arrays_of(take(tmp_path, tokens(tmp_path)))
    ids = [a for key, a in arrays.items() if key.endswith("input_ids")]
    masks = [a for key, a in arrays.items() if key.endswith("attention_mask")]
    assert max(int(a.max()) for a in ids) in range(40, 50)
    assert all((np.diff(a) <= 0).all() and a[:, 0].all() for a in masks)
    assert any(a.all(axis=1).any() and not a.all() for a in masks)


def test_numbered_axes_of_the_samples_are_one(tmp_path: Path) -> None:
    made = take(tmp_path, tokens(tmp_path, ("s43", "s53"), ("s18", "s41")))
    model = onnx.load(made["onnx"] / "model.onnx")
    assert dims_of(model.graph.input)["attention_mask"] == ["s18", "s41"]
    assert [port["batch"] for port in described(made)["inputs"]] == [0, 0]


def test_axes_without_names_get_the_usual_ones(tmp_path: Path) -> None:
    made = take(tmp_path, tokens(tmp_path, (None, None), (None, None)))
    model = onnx.load(made["onnx"] / "model.onnx")
    assert dims_of(model.graph.input)["attention_mask"] == ["batch", "length"]


def test_states_of_a_net_share_the_batch_though_nothing_says_so(tmp_path: Path) -> None:
    nodes = [node("Squeeze", "state zero", "s"), node("Add", "x s", "y")]
    file = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, (None, 8)), "state": (FLOAT, (1, None, 8))},
                {"y": (FLOAT, (None, 8))}, [whole("zero", 0)])  # fmt: skip
    made = take(tmp_path, file)
    assert dims_of(onnx.load(made["onnx"] / "model.onnx").graph.input)["state"] == [1, "batch", 8]


def test_lengths_are_within_their_axis_and_positive(tmp_path: Path) -> None:
    nodes = [node("Sub", "lengths one", "last"), node("Unsqueeze", "last one", "at"),
             node("GatherElements", "x at", "y", axis=1)]  # fmt: skip
    file = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ("batch", "T")), "lengths": (INT64, ("batch",))},
                {"y": (FLOAT, ("batch", 1))}, [whole("one", 1)])  # fmt: skip
    arrays = arrays_of(take(tmp_path, file))
    cases = {key.split("/")[0] for key in arrays}
    assert all((arrays[f"{c}/in/lengths"] <= arrays[f"{c}/in/x"].shape[1]).all() for c in cases)
    assert len({int(n) for c in cases for n in arrays[f"{c}/in/lengths"]}) > 3


def test_scalars_and_bool_masks(tmp_path: Path) -> None:
    nodes = [node("Mul", "x gain", "a"), node("Where", "keep a zero", "y")]
    file = save(tmp_path / "m.onnx", nodes,
                {"x": (FLOAT, ("N", "T")), "keep": (BOOL, ("N", "T")), "gain": (FLOAT, ())},
                {"y": (FLOAT, ("N", "T"))}, [numpy_helper.from_array(np.zeros((), np.float32), "zero")])  # fmt: skip
    made = take(tmp_path, file)
    assert [(p["dtype"], p["batch"]) for p in described(made)["inputs"]] == [
        ("float32", 0), ("bool", 0), ("float32", None)
    ]  # fmt: skip


def test_the_past_of_a_language_model_and_its_sum(tmp_path: Path) -> None:
    nodes = [node("Constant", "", "table", value=weight("t", 30, 8)), node("Gather", "table input_ids", "now"),
             node("Concat", "past now", "all", axis=1), node("Cast", "attention_mask", "m", to=FLOAT),
             node("Unsqueeze", "m two", "m3"), node("Mul", "all m3", "y")]  # fmt: skip
    file = save(
        tmp_path / "m.onnx", nodes,
        {"input_ids": (INT64, ("batch", "sequence_length")), "past": (FLOAT, ("batch", "past_sequence_length", 8)),
         "attention_mask": (INT64, ("batch", "past_sequence_length + sequence_length"))},
        {"y": (FLOAT, ("batch", "total", 8))}, [whole("two", 2)],
    )  # fmt: skip
    made = take(tmp_path, file)
    arrays = arrays_of(made)
    cases = {key.split("/")[0] for key in arrays}
    assert len(cases) == 3
    assert all(arrays[f"{c}/in/attention_mask"].shape[1] == arrays[f"{c}/out/y"].shape[1] for c in cases)


def test_towers_have_batches_of_their_own(tmp_path: Path) -> None:
    nodes = [node("Transpose", "b", "t", perm=[1, 0]), node("MatMul", "a t", "y")]
    file = save(tmp_path / "m.onnx", nodes, {"a": (FLOAT, ("text_batch", 8)), "b": (FLOAT, ("image_batch", 8))},
                {"y": (FLOAT, ("text_batch", "image_batch"))})  # fmt: skip
    made = take(tmp_path, file)
    assert max(sizes_of(made, "b", 0)) < 10
    assert described(made)["outputs"][0]["dynamic"] == {"0": "text_batch", "1": "image_batch"}


def test_torch_is_not_needed(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
from deploy_runner.stages.model.onnx import ModelOnnx
from deploy_runner.testing import run_stage
run_stage(ModelOnnx, Path({str(tmp_path)!r}), inputs={{"model": Path({str(perceptron(tmp_path))!r})}})
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_wrong_fixed_size_of_an_output_is_no_longer_said(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "y")]
    file = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ("batch", 8))}, {"y": (FLOAT, (1, 8))})
    made = take(tmp_path, file)
    assert dims_of(onnx.load(made["onnx"] / "model.onnx").graph.output) == {"y": ["batch", 8]}


def test_real_samples_are_what_it_is_run_on(tmp_path: Path) -> None:
    real = samples(10)
    np.savez(tmp_path / "s.npz", x=real)
    made = take(tmp_path, perceptron(tmp_path), real=tmp_path / "s.npz")
    assert np.array_equal(arrays_of(made)["samples10/in/x"], real)
    assert details(made)["inputs"] == "the samples"
    fixed = take(tmp_path / "fixed", perceptron(tmp_path, (1, 8)), real=tmp_path / "s.npz")
    firsts = [a for key, a in arrays_of(fixed).items() if key.endswith("/in/x")]
    assert [a.tolist() for a in firsts] == [real[i : i + 1].tolist() for i in range(4)]


def test_an_output_that_is_not_finite_fails_the_checklist(tmp_path: Path) -> None:
    file = save(
        tmp_path / "m.onnx", [node("Log", "x", "y")], {"x": (FLOAT, ("N", 8))}, {"y": (FLOAT, ("N", 8))}
    )
    with pytest.raises(GateError, match="output 'y' is nan at .* set `nonfinite: allow`"):
        take(tmp_path, file)
    assert "allowed" in details(take(tmp_path / "allowed", file, nonfinite="allow"))["finite outputs"]


def test_a_sample_that_depends_on_its_batch_fails_the_checklist(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "y")]
    named = save(tmp_path / "a.onnx", nodes, {"x": (FLOAT, ("batch", 8))}, {"y": (FLOAT, ("batch", 8))})
    with pytest.raises(GateError, match="batch of one agrees"):
        take(tmp_path, named)
    nodes_of_a_graph = save(
        tmp_path / "b.onnx", nodes, {"x": (FLOAT, ("nodes", 8))}, {"y": (FLOAT, ("nodes", 8))}
    )
    assert described(take(tmp_path / "b", nodes_of_a_graph))["inputs"][0]["batch"] is None


def test_texts_sequences_and_shapeless_inputs_are_refused_or_told(tmp_path: Path) -> None:
    text = save(tmp_path / "a.onnx", [node("Identity", "x", "y")], {"x": (TensorProto.STRING, ("N",))},
                {"y": (TensorProto.STRING, ("N",))})  # fmt: skip
    with pytest.raises(StageError, match=r"the input 'x' is tensor\(string\), not a tensor of numbers"):
        take(tmp_path / "a", text)
    graph = helper.make_graph(
        [node("SplitToSequence", "x", "y")], "g", [helper.make_tensor_value_info("x", FLOAT, (3, 4))],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        StageError, match=r"the output 'y' is seq\(tensor\(float\)\), not a tensor of numbers"
    ):
        take(tmp_path / "b", tmp_path / "b.onnx")
    shapeless = perceptron(tmp_path / "c")
    loaded = onnx.load(shapeless)
    loaded.graph.input[0].type.tensor_type.ClearField("shape")
    shapeless.write_bytes(loaded.SerializeToString())
    with pytest.raises(StageError, match="the input 'x' declares no shape"):
        take(tmp_path / "c", shapeless)
    np.savez(tmp_path / "s.npz", x=np.ones((6, 8), np.float32))
    made = take(tmp_path / "d", shapeless, real=tmp_path / "s.npz", sizes={"x_1": 8})
    assert dims_of(onnx.load(made["onnx"] / "model.onnx").graph.input) == {"x": ["batch", 8]}


def test_external_data_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "both").mkdir()
    net = tmp_path / "both" / "net.onnx"
    onnx.save(
        onnx.load(perceptron(tmp_path)), net, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    made = take(tmp_path, tmp_path / "both")
    assert sorted(p.name for p in made["onnx"].iterdir()) == ["model.onnx"]
    inputs = {"model": made["onnx"], "reference": made["model"]}
    assert run_stage(stage("onnx.optimize"), tmp_path / "o", inputs=inputs).figures["max_abs"] < 1e-6
    monkeypatch.setattr("deploy_runner.stages.model.moving.SINGLE_FILE_BYTES", 100)
    large = take(tmp_path / "large", tmp_path / "both")
    assert sorted(p.name for p in large["onnx"].iterdir()) == ["model.onnx", "model.onnx.data"]
    assert arrays_of(large).keys() == arrays_of(made).keys()
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(net.read_bytes())
    with pytest.raises(StageError, match=r"stores its data in 'w.bin', which does not exist") as error:
        take(tmp_path / "g", alone)
    assert error.value.fix == "use the folder that contains the model and its data"


def test_an_input_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "m.onnx", [node("ReduceMean", "x", "y", keepdims=0)], {"x": (FLOAT, (1 << 20, 1 << 20))},
                {"y": (FLOAT, ())})  # fmt: skip
    with pytest.raises(StageError, match=r"the input 'x' of shape \[1048576, 1048576\] is too large to try"):
        take(tmp_path, file)
