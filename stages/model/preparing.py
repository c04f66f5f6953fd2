"""Check a module that has its weights, run it at several sizes, and write its bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deploy_runner.sdk import Context, Field

from . import bundles
from .axes import Axis
from .checklist import OutputParams, Ports, batches, checklist, digests, judged, record
from .eager import Eager
from .initial import unsaved
from .precision import Precise
from .variation import Source, explore, output_port

if TYPE_CHECKING:
    from torch import nn

    from .bundles import Case

__all__ = ["Asked", "Built", "Origin", "copy_code", "prepare"]


class Asked(OutputParams):
    """What the user says of a module's outputs."""

    output_names: list[str] | None = Field(None, description="names of the flattened outputs")
    batch_tolerance: float | None = Field(
        None, ge=0,
        description="how far a sample's result may depend on its batch "
        "(default: 1e-4, and for half types 16 units of their rounding)",
    )  # fmt: skip


class Origin(Protocol):
    """How the module is built again."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files which that needs into a bundle; return what bundle.json says of it."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """By a factory, with the files and packages that it needs, and by the weights."""

    factory: str
    kwargs: Mapping[str, Any]
    code: Mapping[str, Path]
    packages: Mapping[str, str]
    weights: Path

    def write(self, folder: Path) -> dict[str, Any]:
        """Copy weights and code."""
        shutil.copyfile(self.weights, folder / "weights.safetensors")
        copy_code(self.code, folder)
        # Nothing reads the packages: they make the keys of the conversions depend on what the code imports.
        return {"factory": self.factory, "kwargs": self.kwargs, "packages": dict(self.packages)}


def copy_code(code: Mapping[str, Path], folder: Path) -> None:
    """Copy the files of a `Code` parameter to where a bundle has them."""
    for name, path in sorted(code.items()):
        place = folder / "code" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def prepare(
    ctx: Context, module: nn.Module, source: Source, axes: Mapping[str, Axis], asked: Asked, origin: Origin,
    folder: Path, report: Path, *, named: bool,
) -> Sequence[Case]:  # fmt: skip
    """Write the bundle into `folder` and the checklist as `report`; return the reference cases.

    `named` says that the batch is called so. Raises GateError where a line of the checklist doesn't hold.
    """
    bundles.frozen(module)
    arguments = bundles.arguments_of(port for port, _ in source.ports)
    eager = Eager(module, asked.output_names, arguments)
    before, beside, batch = digests(module), unsaved(module), source.batch
    ctx.progress(0.2, "running the model at two or more sizes of each axis")
    found = explore(source, axes, eager)
    outs = [output_port(name, dtype, found, batch) for name, dtype in eager.dtypes.items()]
    ports = Ports([port for port, _ in source.ports], outs)
    ctx.progress(0.5, "running the pre-save checklist")
    independent = batches(eager, found, ports, asked.batch_tolerance, named=named)
    if not named and batch is not None:
        ports, independent = judged(batch, ports, independent)
    lines = checklist(eager, found, ports, before, independent,
                      expect_shape=asked.expect_shape, nonfinite=asked.nonfinite)  # fmt: skip
    ctx.progress(0.7, "measuring the model's own rounding in float64")
    exact = Precise.of(module, arguments)
    described = {
        "precision": exact.of_cases(found.cases, found.apart_from(batch), eager.dtypes),
        "axes": [axis.as_dict() for axis in found.axes.values()],
        "kept": eager.kept,
        "unsaved": beside,
        **_hub_config(module),
    }
    ctx.progress(0.9, "storing weights and reference outputs")
    _write(folder, origin, ports, described, found.cases)
    if eager.left_out:
        ctx.figure("left_out", eager.left_out)  # type: ignore[arg-type]
        left = ", ".join(f"{place or 'the result'} ({kind})" for place, kind in eager.left_out.items())
        ctx.log(f"left out of the outputs, not being tensors: {left}")
    ctx.figure("parameters", sum(p.numel() for p in module.parameters()))
    record(ctx, lines, report)
    return found.cases


def _hub_config(module: nn.Module) -> dict[str, Any]:
    """Return what the module's class would save as config.json, if it is one of huggingface_hub's mixins."""
    if not any(kind.__module__ == "huggingface_hub.hub_mixin" for kind in type(module).__mro__):
        return {}
    config: Any = getattr(module, "_hub_mixin_config", None) or {}
    plain = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    return {"hub_config": plain}


def _write(
    folder: Path, origin: Origin, ports: Ports, described: Mapping[str, Any], cases: Sequence[Case]
) -> None:
    folder.mkdir(exist_ok=True)
    data = {
        **origin.write(folder),
        "inputs": [port.as_dict() for port in ports.inputs],
        "outputs": [port.as_dict() for port in ports.outputs],
        **described,
    }
    bundles.write_bundle(folder, data, cases)
