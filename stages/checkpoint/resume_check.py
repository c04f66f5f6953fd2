"""`checkpoint.resume_check`: does training really continue from this checkpoint?"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
    closest,
    first_line,
)

from ..model import bundles, loading, npz, state_dicts
from ..model.calls import arguments, call, in_order
from ..model.structures import hints_of, is_structure
from ..model.wording import user_line
from . import reader

if TYPE_CHECKING:
    import torch
    from torch import nn

Loss = Literal["cross_entropy", "mse_loss", "l1_loss", "binary_cross_entropy_with_logits"]


class CheckpointResumeCheck(Stage):
    """Run real optimisation steps from the checkpoint, once without and once with an interruption.

    The interrupted run saves a checkpoint half-way, starts again, and continues from that file.
    Both runs must have the same losses, bit for bit on one thread. The first loss must show that
    the training continues from the checkpoint, and doesn't start from scratch.
    """

    uses = "checkpoint.resume_check"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(StageParams):
        """How the model was trained."""

        factory: Code = Field(
            description="the function or class that builds the nn.Module, as path/to/file.py:name "
            "or, of an installed library, package.module:name"
        )
        kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
        optimizer: str | None = Field(
            None, description="a class of torch.optim, e.g. AdamW; its settings are in the checkpoint"
        )
        make_optimizer: Code | None = Field(
            None, description="function(model) that returns the optimizer, instead of `optimizer`"
        )
        loss: Loss = Field("cross_entropy", description="a loss of torch.nn.functional")
        loss_function: Code | None = Field(
            None, description="function(outputs, labels) that returns the loss, instead of `loss`"
        )
        steps: int = Field(10, ge=2, description="optimisation steps; half of them after the interruption")
        batch_size: int = Field(32, ge=1, description="samples in a step")
        max_jump: float | None = Field(
            None, gt=0, description="largest first loss, as a multiple of the checkpoint's `loss`"
        )

    class Inputs(StageInputs):
        """The checkpoint and the data."""

        checkpoint: File = Field(description="with model_state_dict and optimizer_state_dict")
        data: File = Field(
            description="an .npz with the inputs (by name, or `x`; the keys or fields of forward()'s only "
            "argument) and the labels `y`"
        )

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("resume.json", "the losses of both runs")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Train straight and interrupted, compare, refuse."""
        import torch

        torch.set_num_threads(1)
        content = reader.read(inputs.checkpoint, trust=ctx.trust)
        trainer = _Trainer(ctx, params, npz.read_arrays(inputs.data))
        half = params.steps // 2
        weights, _ = state_dicts.find_state_dict(content, None)
        weights = state_dicts.strip_wrappers(weights, None)
        start = {
            "model_state_dict": weights,
            "optimizer_state_dict": _optimizer_state(content),
            "rng_state": content.get("rng_state"),
        }
        straight = trainer.resume(start)
        expected = straight.train(0, params.steps)
        if not start["optimizer_state_dict"].get("state") and any(straight.optimizer.state.values()):
            raise GateError(
                "the checkpoint's optimizer has no state: it was probably saved before the first step",
                fix="save the checkpoint after a step of training",
            )
        interrupted = trainer.resume(start)
        found = interrupted.train(0, half)
        found += trainer.resume(interrupted.saved_and_loaded()).train(half, params.steps)

        recorded = content.get("loss") if isinstance(content, Mapping) else None
        report: dict[str, Any] = {
            "losses": expected,
            "losses_interrupted": found,
            "interrupted_after": half,
            "recorded_loss": float(recorded) if isinstance(recorded, (int, float)) else None,
            "untrained_loss": trainer.untrained_loss(),
        }
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        ctx.figure("steps", params.steps)
        ctx.figure("first_loss", expected[0])
        ctx.figure("last_loss", expected[-1])
        for name in ("recorded_loss", "untrained_loss"):
            ctx.figure(name, report[name])
        _refuse(params, report)


def _refuse(params: CheckpointResumeCheck.Params, report: Mapping[str, Any]) -> None:
    pairs = zip(report["losses"], report["losses_interrupted"], strict=True)
    for step, (straight, interrupted) in enumerate(pairs):
        if straight != interrupted:
            raise GateError(
                f"the loss of step {step} is {interrupted!r} after resuming, {straight!r} "
                "without an interruption: some state is missing in the checkpoint",
                fix="save the scheduler's state and those of the random generators too",
            )
    first, recorded = report["losses"][0], report["recorded_loss"]
    if first >= report["untrained_loss"]:
        raise GateError(
            f"the first loss is {first:.4g}, not below the {report['untrained_loss']:.4g} of an "
            "untrained model: training would start from scratch",
            fix="check that the weights, `loss` and the data are those of the training",
        )
    if params.max_jump is None:
        return
    if recorded is None:
        raise StageError("max_jump needs the checkpoint's `loss`, which it doesn't have",
                         fix="save it in the checkpoint, or remove `max_jump`")  # fmt: skip
    if first > params.max_jump * recorded:
        raise GateError(f"the first loss is {first:.4g}, the checkpoint's was {recorded:.4g}: "
                        f"the limit is a factor of {params.max_jump:g}",
                        fix="check that `loss` and the data are those of the training")  # fmt: skip


def _optimizer_state(content: Any) -> dict[str, Any]:
    for name in ("optimizer_state_dict", "optimizer"):
        state = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(state, dict) and "param_groups" in state:
            return state
    raise StageError("the checkpoint has no optimizer_state_dict: training can't continue from it",
                     fix='save {"optimizer_state_dict": optimizer.state_dict(), …}')  # fmt: skip


class _Trainer:
    """Knows how to make a session of training from what a checkpoint holds."""

    def __init__(self, ctx: Context, params: CheckpointResumeCheck.Params, arrays: dict[str, Any]) -> None:
        import torch
        from torch.nn import functional

        if (params.optimizer is None) == (params.make_optimizer is None):
            raise StageError("set either `optimizer` or `make_optimizer`",
                             fix="e.g. optimizer: AdamW")  # fmt: skip
        if "y" not in arrays or len(arrays) < 2 or not len(arrays["y"]):
            raise StageError(
                "the data must contain inputs and labels `y`", fix="save it as np.savez(path, x=…, y=…)"
            )
        self._ctx, self._params = ctx, params
        self._labels = torch.from_numpy(arrays.pop("y"))
        self._inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._loss: Callable[..., Any] = getattr(functional, params.loss)
        if params.loss_function is not None:
            self._loss = ctx.load(params.loss_function)

    def _build(self) -> nn.Module:
        factory = self._ctx.load(self._params.factory)
        module = bundles.build_module(factory, self._params.kwargs, self._params.factory)
        return module.cpu().train()

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        import torch

        if self._params.make_optimizer is not None:
            made = self._ctx.load(self._params.make_optimizer)(module)
            if not isinstance(made, torch.optim.Optimizer):
                raise StageError(
                    f"{self._params.make_optimizer} returned {type(made).__name__}, not an optimizer"
                )
            return made
        name = str(self._params.optimizer)
        kind = getattr(torch.optim, name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            known = [n for n, v in vars(torch.optim).items() if isinstance(v, type)]
            raise StageError(f"torch.optim has no optimizer {name!r}", fix=closest(name, known))
        return kind(module.parameters())  # type: ignore[call-arg]

    def resume(self, checkpoint: Mapping[str, Any]) -> _Session:
        """Return a session with a new model and optimizer that continue from a checkpoint.

        Its random numbers continue from `rng_state`, or from the stage's seed where there is none.
        """
        import torch

        module = self._build()
        state = copy.deepcopy({n: checkpoint[n] for n in ("model_state_dict", "optimizer_state_dict")})
        loading.load(module, state["model_state_dict"], copy=True)
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        optimizer = self._optimizer(module)
        try:
            optimizer.load_state_dict(state["optimizer_state_dict"])
        except (ValueError, KeyError, RuntimeError) as error:
            said = f"the checkpoint's optimizer doesn't match: {first_line(error)}"
            raise StageError(said, fix="use the same optimizer with the same parameter groups") from error
        torch.manual_seed(self._ctx.seed)
        if isinstance(checkpoint["rng_state"], torch.Tensor):
            torch.set_rng_state(checkpoint["rng_state"])
        return _Session(module, optimizer, self._batch, self._loss)

    def untrained_loss(self) -> float:
        """Return the loss of the first batch with the weights that the factory makes."""
        import torch

        torch.manual_seed(self._ctx.seed)
        module = self._build()
        with torch.no_grad():
            inputs, labels = self._batch(0)
            return float(self._loss(_call(module, inputs), labels))

    def _batch(self, step: int) -> tuple[dict[str, Any], Any]:
        """Return the inputs and labels of a step; the data is gone through in order, again and again."""
        import torch

        count = len(self._labels)
        rows = torch.arange(step * self._params.batch_size, (step + 1) * self._params.batch_size) % count
        return {name: tensor[rows] for name, tensor in self._inputs.items()}, self._labels[rows]


@dataclass(frozen=True, slots=True)
class _Session:
    """A model and its optimizer while they train."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Callable[[int], tuple[dict[str, Any], Any]]
    loss: Callable[..., Any]

    def train(self, start: int, stop: int) -> list[float]:
        """Take the steps from `start` to `stop` and return their losses."""
        losses = []
        for step in range(start, stop):
            inputs, labels = self.batch(step)
            self.optimizer.zero_grad()
            try:
                loss = self.loss(_call(self.module, inputs), labels)
                loss.backward()
            except Exception as error:
                where = user_line(error)
                raise StageError(f"step {step} fails: {first_line(error)}{where}",
                                 fix="check that data and loss match the model") from error  # fmt: skip
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def saved_and_loaded(self) -> Any:
        """Return what comes back from a checkpoint of the session, written as a training loop would."""
        import torch

        buffer = io.BytesIO()
        content = {
            "model_state_dict": self.module.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "rng_state": torch.get_rng_state(),
        }
        torch.save(content, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)


def _call(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run the module; the only input may be called `x` whatever forward() calls it.

    Inputs that are not called as forward()'s only argument are its parts, if it is a mapping or a class.
    """
    names, own = list(inputs), arguments(module)
    if (
        len(own) == 1
        and own[0] not in names
        and (len(names) > 1 or is_structure(hints_of(module.forward).get(own[0])))
    ):
        return call(module, inputs, {own[0]: {name: name for name in names}})
    if len(inputs) == 1:
        return module(*inputs.values())
    return call(module, {name: inputs[name] for name in in_order(module, names)})
