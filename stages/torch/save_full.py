"""`torch.save_full`: the whole module as one pickle, with the code that it needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

from deploy_runner.sdk import (
    Context,
    Field,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    first_line,
    module_path,
)

from ..model import bundles, npz
from ..model.bundles import Bundle, Case
from ..model.calls import Binding, bind
from ..model.compare import Tolerances, compare, gate

_LOADER = '''"""The model, ready to run: `from load_model import load; model = load()`; `model({call})`."""

import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent


def load():
    """Return the module in eval mode on the CPU. The pickle runs code: load your own files only."""
    for code in {folders}:
        sys.path.insert(0, str(FOLDER / code))
    return torch.load(FOLDER / "model.pt", map_location="cpu", weights_only=False)
'''

_PROOF = """
import json, sys
sys.path[:] = [sys.argv[1], *json.loads(sys.argv[5])]
import numpy, torch
from load_model import load
module, names = load(), json.loads(sys.argv[2])
with torch.no_grad(), numpy.load(sys.argv[3]) as arrays:
    for case, inputs in names.items():
        given = {name: torch.from_numpy(arrays[f"{case}/in/{name}"]) for name in inputs[0] + inputs[1]}
        result = module(*(given[name] for name in inputs[0]), **{name: given[name] for name in inputs[1]})
        leaves = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        found = [(t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in leaves]
        numpy.savez(f"{sys.argv[4]}/{case}.npz", *found)
"""


class TorchSaveFull(Stage):
    """Save the whole module with torch.save, its source files and a loader.

    It is loaded back in a fresh Python process that has nothing but this folder, and compared.
    Loading such a file runs code: it suits your own Python programs, nobody else's.
    """

    uses = "torch.save_full"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(Tolerances):
        """How close the module must be."""

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The module."""

        model: Folder = Output("model", "model.pt, load_model.py and code/")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Save, load back elsewhere, compare."""
        import torch

        bundle = bundles.load_bundle(inputs.model)
        bundle.need_python("torch.trace, torch.script or torch.export")
        module = bundle.own_module()
        binding = bind(module, bundle.input_names)
        outputs.model.mkdir(exist_ok=True)
        try:
            with (outputs.model / "model.pt").open(
                "wb"
            ) as file:  # To a name, the name would be in the bytes.
                torch.save(module, file)
        except Exception as error:
            said = f"the module can't be pickled: {first_line(error)}"
            raise StageError(said, fix="define its classes at the top level of a file") from error
        _copy_code(inputs.model / "code", outputs.model / "code")
        parent = PurePosixPath(module_path(bundle.factory.rpartition(":")[0])).parent
        folders = list(dict.fromkeys([str(PurePosixPath("code") / parent), "code"]))
        loader = _LOADER.replace("{folders}", repr(folders)).replace("{call}", str(binding))
        (outputs.model / "load_model.py").write_text(loader, "utf-8")
        found = _load_elsewhere(ctx, bundle, binding, outputs.model)
        parity = compare(found, _recorded, atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        ctx.figure("bytes", (outputs.model / "model.pt").stat().st_size)


def _copy_code(source: Path, target: Path) -> None:
    """Copy the files to where plain Python imports them by the names that are in the pickle."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / module_path(file.relative_to(source).as_posix())
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _recorded(arrays: bundles.Arrays) -> bundles.Arrays:
    return arrays


def _load_elsewhere(ctx: Context, bundle: Bundle, binding: Binding, folder: Path) -> list[Case]:
    """Run the cases in a process that imports nothing of ours; return them as expected and found."""
    names = {case.name: (binding.positional, binding.named) for case in bundle.cases}
    made = ctx.workdir / "made"
    made.mkdir()
    arguments = [str(folder), json.dumps(names), str(bundle.folder / "reference.npz"), str(made),
                 json.dumps(sys.path)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-B", "-I", "-c", _PROOF, *arguments], capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise StageError(f"the saved module can't be loaded in a new Python process: {said}",
                         fix="import everything that it needs")  # fmt: skip
    found = []
    for case in bundle.cases:
        arrays = list(npz.read_arrays(made / f"{case.name}.npz").values())
        outputs = dict(zip(bundle.output_names, arrays, strict=True))
        found.append(replace(case, inputs=outputs))
    return found
