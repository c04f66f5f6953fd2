"""What load_state_dict accepts is accepted: strangers' checkpoints, ties, types, prefixes, extra states."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy_runner.errors import StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.pipeline.weights import assert_right, extract, make, old_names, prepare


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("lost", [None, "embed.weight", "head.weight"])
def test_a_real_tie_is_one_tensor_again_whichever_name_the_file_has(
    tmp_path: Path, lost: str | None, meta: bool
) -> None:
    from deploy_runner.stages.model import bundles

    state = make("Tied").state_dict()
    if lost:
        del state[lost]
    factory = {"factory": "on_meta", "kwargs": {"name": "Tied"}} if meta else {"factory": "Tied"}
    made = prepare(tmp_path, content=state, **factory)
    assert_right(made, make("Tied"))
    module: Any = bundles.load_bundle(made["model"]).own_module()
    assert module.embed.weight is module.head.weight


@pytest.mark.parametrize(
    ("model", "pair"),
    [("Tied", ("embed.weight", "head.weight")), ("Shared", ("one.weight", "two.weight"))],
)
def test_two_values_for_one_tensor_are_refused_with_both_names(
    tmp_path: Path, model: str, pair: tuple[str, str]
) -> None:
    state = {name: tensor.clone() for name, tensor in make(model).state_dict().items()}
    assert_right(prepare(tmp_path / "same", model, state), make(model))
    state[pair[1]] += 1
    with pytest.raises(StageError, match=f"{pair[0]} and {pair[1]} are tied in the model, but differ"):
        prepare(tmp_path / "other", model, state)


def test_views_of_one_storage_are_each_loaded_with_their_own_values(tmp_path: Path) -> None:
    assert_right(prepare(tmp_path / "views", "Sliced", make("Sliced").state_dict()), make("Sliced"))
    trained = make("Sliced")
    for parameter in trained.parameters():
        parameter.data = torch.randn(parameter.shape)
    assert_right(prepare(tmp_path / "own", "Sliced", trained.state_dict()), trained)


def test_whoever_else_looks_at_a_parameter_sees_the_loaded_values(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = {f"parts.{i}.weight": torch.randn(4, 4) for i in range(2)}
    trained = make("Looking")
    trained.load_state_dict(state)
    assert_right(prepare(tmp_path, "Looking", state), trained)


def test_lazy_layers_are_ordinary_ones_for_every_conversion(tmp_path: Path) -> None:
    trained = make("lazy")
    trained(torch.randn(3, 4))
    made = prepare(tmp_path, "lazy", trained.state_dict())
    script = run_stage(stage("torch.script"), tmp_path / "s", inputs={"model": made["model"]})["model"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.jit.load(script)(x), trained.eval()(x))


@pytest.mark.parametrize("name", ["lstm", "lazy", "normed", "half"])
def test_models_of_every_habit_load(tmp_path: Path, name: str) -> None:
    trained = make(name)
    if name == "lazy":
        trained(torch.randn(3, 4))
    example = {"shape": [2, 4], "dtype": "float16" if name == "half" else "float32"}
    assert_right(prepare(tmp_path, name, trained.state_dict(), example=example), trained)


def test_old_names_and_absent_counters_are_accepted_as_torch_accepts_them(tmp_path: Path) -> None:
    pairs = (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    )
    old = old_names(make("normed").state_dict(), *pairs)
    assert_right(prepare(tmp_path / "norm", "normed", old), make("normed"))
    state = {n: t for n, t in make("plain").state_dict().items() if not n.endswith("num_batches_tracked")}
    assert_right(prepare(tmp_path / "plain", "plain", state), make("plain"))
    new = make("plain").state_dict()
    del new["1.num_batches_tracked"]
    with pytest.raises(StageError, match="missing 1.num_batches_tracked"):
        prepare(tmp_path / "new", "plain", new)
    allowed = prepare(tmp_path / "allowed", "plain", new, allow_missing=["*.num_batches_tracked"])
    assert allowed.figures["initial"] == ["1.num_batches_tracked"]
    assert_right(allowed, make("plain"))


def test_hooks_and_versions_decide_as_in_load_state_dict(tmp_path: Path) -> None:
    trained = make("Renaming")
    assert_right(prepare(tmp_path / "new", "Renaming", trained.state_dict()), trained)
    wrapped = OrderedDict((f"module.{n}", t) for n, t in trained.state_dict().items())
    wrapped._metadata = {"module": {"version": 2}, "module.new": {"version": 1}}  # type: ignore[attr-defined]
    assert_right(prepare(tmp_path / "wrapped", "Renaming", wrapped), trained)
    old = {"old.weight": trained.state_dict()["new.weight"].t().contiguous()}
    assert_right(prepare(tmp_path / "old", "Renaming", old), trained)
    trained = make("Overriding")
    trained.w.data = torch.tensor([1.0, 2, 3, 4])
    assert_right(prepare(tmp_path / "override", "Overriding", {"log_w": trained.w.detach().log()}), trained)


def test_an_extra_state_of_plain_values_and_tensors_travels(tmp_path: Path) -> None:
    trained = make("Extra")
    trained.state = {"scale": 3.0, "shift": {(0, "a"): [None, torch.arange(4.0)]}, "on": True}
    made = prepare(tmp_path, "Extra", {"epoch": 1, "model": trained.state_dict()})
    assert_right(made, trained)
    inputs = {"weights": tmp_path / "w/outputs/weights.safetensors"}
    written = run_stage(stage("checkpoint.create"), tmp_path / "create", inputs=inputs)["checkpoint"]
    again = make("Extra")
    again.load_state_dict(torch.load(written, weights_only=True)["model_state_dict"])
    assert again.state["shift"][(0, "a")][1].tolist() == [0, 1, 2, 3]


def test_an_extra_state_that_needs_a_pickle_is_refused(tmp_path: Path) -> None:
    state = make("plain").state_dict() | {"_extra_state": {"path": [Path("a/b")]}}
    with pytest.raises(
        StageError, match="the extra state '_extra_state' contains a PurePosixPath, which can't be stored"
    ):
        extract(tmp_path, state)


@pytest.mark.parametrize(
    "metadata",
    [
        {"extra_state": '{"a_extra_state": {"tensor": "nowhere"}}'},
        {"extra_state": '{"a_extra_state": {"exec": "1"}}'},
        {"extra_state": '{"a_extra_state": {"dict": [[{"list": []}, 1]]}}'},
        {"extra_state": "[" * 100_000},
        {"tied": '["weight"]'},
        {"versions": '{"a": 3}'},
        {"stripped": "7"},
    ],
)
def test_metadata_that_nobody_writes_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(StageError, match="w.safetensors is not a safetensors file"):
        prepare(tmp_path, "plain", tmp_path / "w.safetensors")


def test_what_stays_on_the_meta_device_is_named(tmp_path: Path) -> None:
    trained = make("Rotary")
    assert_right(prepare(tmp_path / "cpu", "Rotary", trained.state_dict()), trained)
    with pytest.raises(StageError, match="freq stay on the meta device, without values"):
        prepare(tmp_path / "meta", "on_meta", trained.state_dict(), kwargs={"name": "Rotary"})


def test_types_are_the_models_and_numbers_are_never_cut(tmp_path: Path) -> None:
    state = make("Counting").state_dict()
    whole = prepare(tmp_path / "whole", "Counting", state | {"steps": torch.tensor([3.0, 4, 5, 6])})
    trained = make("Counting")
    trained.steps += torch.tensor([3, 4, 5, 6])
    assert "narrowed" not in whole.figures
    assert_right(whole, trained)
    with pytest.raises(
        StageError, match="steps is float32 in the checkpoint and int64 in the model, which can't"
    ):
        prepare(tmp_path / "cut", "Counting", state | {"steps": torch.tensor([3.5, 4, 5, 6])})
    with pytest.raises(
        StageError, match="steps is int64 in the checkpoint and int8 in the model, which can't"
    ):
        prepare(
            tmp_path / "int8",
            "Counting",
            state | {"steps": torch.tensor([300, 4, 5, 6])},
            kwargs={"dtype": "int8"},
        )
    double = {name: t.double() for name, t in make("plain").state_dict().items() if t.is_floating_point()}
    made = prepare(tmp_path / "double", "plain", double)
    assert made.figures["narrowed"] == sorted(double)
    assert_right(made, make("plain"))


def test_unexpected_keys_are_refused_with_the_option_that_drops_them(tmp_path: Path) -> None:
    content = (
        make("plain").state_dict()
        | {f"aux.{i}.weight": torch.ones(1) for i in range(9)}
        | {"ema": torch.ones(1)}
    )
    with pytest.raises(StageError, match=r"the model: unexpected aux\.0\.weight, ") as error:
        prepare(tmp_path / "refused", "plain", content)
    assert error.value.fix.endswith("set allow_unexpected: ['aux.*', 'ema']")
    made = prepare(tmp_path / "allowed", "plain", content, allow_unexpected=["aux.*", "ema"])
    assert made.figures["dropped"] == [*(f"aux.{i}.weight" for i in range(9)), "ema"]
    assert_right(made, make("plain"))
    with pytest.raises(StageError, match="the model: unexpected ema \\("):
        prepare(tmp_path / "some", "plain", content, allow_unexpected=["aux.*"])


def test_what_is_left_at_its_initial_value_is_the_same_in_every_later_stage(tmp_path: Path) -> None:
    from deploy_runner.stages.model import bundles

    state = {n: t for n, t in make("plain").state_dict().items() if not n.startswith("0.")}
    made = prepare(tmp_path, "plain", state, allow_missing=["0.*"])
    assert made.figures["initial"] == ["0.weight", "0.bias"]
    modules: list[Any] = [bundles.load_bundle(made["model"]).own_module() for _ in range(2)]
    assert torch.equal(modules[0][0].weight, modules[1][0].weight)


@pytest.mark.parametrize(
    ("wrap", "refit"),
    [
        pytest.param(lambda s: s, "+module.", id="bare"),
        pytest.param(lambda s: {f"module.{n}": t for n, t in s.items()}, "+module.", id="DDP"),
        pytest.param(lambda s: {f"_orig_mod.module.{n}": t for n, t in s.items()}, "+module.", id="DDP compiled"),
        pytest.param(lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()}, "+module.", id="compiled DDP"),
        pytest.param(lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{n}": t for n, t in s.items()}, "+module.", id="EMA"),
        pytest.param(lambda s: {"module.n_averaged": torch.tensor(3)} | {f"module.module.{n}": t for n, t in s.items()},
                     "+module.", id="EMA in DDP"),
        pytest.param(lambda s: {f"model.{n}": t for n, t in s.items()}, "-model.", id="Lightning"),
    ],
)  # fmt: skip
def test_a_child_called_like_a_wrapper_is_loaded_from_every_wrapping(
    tmp_path: Path, wrap: Any, refit: str
) -> None:
    made = prepare(tmp_path, "Calling", {"state_dict": wrap(make("Calling").state_dict())})
    assert made.figures["refit"] == refit
    assert_right(made, make("Calling"))


def test_a_part_that_was_wrapped_alone_is_loaded(tmp_path: Path) -> None:
    """`model.features = DataParallel(model.features)`, as the ImageNet example of PyTorch does for AlexNet and VGG."""
    trained = make("Tower")
    wrapped = OrderedDict(
        (n.replace("features.", "features.module."), t) for n, t in trained.state_dict().items()
    )
    wrapped._metadata = {"features.module.1": {"version": 2}}  # type: ignore[attr-defined]
    made = prepare(tmp_path, "Tower", {"state_dict": wrapped})
    assert made.figures["refit"] == "-*.module."
    assert_right(made, trained)
    del wrapped["features.module.1.num_batches_tracked"]
    with pytest.raises(StageError, match="missing features.1.num_batches_tracked"):
        prepare(tmp_path / "version", "Tower", {"state_dict": wrapped})


def test_a_training_classes_prefix_is_taken_off_unless_two_fit(tmp_path: Path) -> None:
    state = make("plain").state_dict()
    lightning = {f"model.{n}": t for n, t in state.items()}
    assert_right(prepare(tmp_path / "one", "plain", {"state_dict": lightning}), make("plain"))
    with pytest.raises(StageError, match="the model: unexpected loss.w \\(") as error:
        prepare(tmp_path / "loss", "plain", {"state_dict": lightning | {"loss.w": torch.ones(1)}})
    assert error.value.fix.startswith("to keep only the model's, set `strip_prefix: model.` on checkpoint")
    both = lightning | {f"ema.{n}": t for n, t in state.items()}
    with pytest.raises(StageError, match="match the model under ema. and under model."):
        prepare(tmp_path / "two", "plain", {"state_dict": both})
    chosen = extract(tmp_path / "three", {"state_dict": both}, strip_prefix="ema.")
    assert sorted(load_file(chosen["weights"])) == sorted(state)
    assert chosen.figures["dropped"] == sorted(lightning)


@pytest.mark.parametrize(
    ("content", "key", "averaged"),
    [
        ({"state_dict": 1, "state_dict_ema": 2, "arch": "r"}, "state_dict", False),  # timm
        ({"params": 1, "params_ema": 2}, "params", False),  # BasicSR
        ({"params_ema": 2}, "params_ema", True),
        ({"model_state": 1, "optimizer_state": {}}, "model_state", False),
        ({"ema": {"state_dict": 2, "decay": 0.9}, "step": 3}, "ema.state_dict", True),
        ({"models": {"generator": 1, "discriminator": 2}}, "models.generator", False),
        ({"g_ema": 2, "g": 1, "d": 1}, "g_ema", True),  # StyleGAN2
    ],
)
def test_which_weights_were_taken_is_said(tmp_path: Path, content: Any, key: str, averaged: bool) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return {"weight": torch.full((1,), float(value))} if value in (1, 2) else value

    made = extract(tmp_path, filled(content))
    assert (made.figures["key"], made.figures["averaged"]) == (key, averaged)
    said = json.loads(made["metadata"].read_text())
    assert (said["key"], said["averaged"]) == (key, averaged)
    assert made.figures.get("other_keys", []) == said["other_keys"]
    others = [name for name in ("state_dict_ema", "params_ema", "g", "d") if name in content and name != key]
    assert set(others) <= set(said["other_keys"])
    if others:
        other = extract(tmp_path / "other", filled(content), key=others[0])
        assert other.figures["key"] == others[0]


def test_training_on_views_goes_on_with_views(tmp_path: Path) -> None:
    """checkpoint.resume_check fills the module's own memory, so that a step on one view moves the other."""
    from deploy_runner.stages.model import loading

    module = make("Sliced")
    loading.load(module, make("Sliced").state_dict(), copy=True)
    with torch.no_grad():
        module.a += 1
    assert torch.equal(module.a.t(), module.b)
    own = {name: torch.randn(t.shape) for name, t in module.state_dict().items()}
    with pytest.raises(StageError, match="overlap other tensors in the model's memory, but differ"):
        loading.load(module, own, copy=True)
