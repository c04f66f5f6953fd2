"""`torch.save_full`: the whole module as one pickle, with the code that it needs."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
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

from ..model import bundles, npz, results
from ..model.bundles import Bundle, Case
from ..model.calls import Expression, expression
from ..model.compare import Tolerances, compare, gate
from ..model.structures import FIELDS, Fields

_LOADER = '''"""The model, ready to run: `from load_model import load; model = load()`; {call}."""

import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent{fields}


def load():
    """Return the module in eval mode on the CPU. The pickle runs code: load your own files only."""
    for code in {folders}:
        sys.path.insert(0, str(FOLDER / code))
    return torch.load(FOLDER / "model.pt", map_location="cpu", weights_only=False)
'''

_PROOF = """
import functools, importlib, json, runpy, sys
given = json.loads(sys.argv[2])
sys.path[:] = [sys.argv[1], *given["path"]]
import numpy, torch
import load_model
module, known = load_model.load(), {}
tensors = runpy.run_path(given["results"])["tensors"]
for word, (place, name) in given["kinds"].items():
    known[word] = functools.reduce(getattr, name.split("."), importlib.import_module(place))
with torch.no_grad(), numpy.load(given["reference"]) as arrays:
    for case in given["cases"]:
        inputs = {w: torch.from_numpy(arrays[f"{case}/in/{name}"]) for name, w in given["words"].items()}
        result = eval(f"_module({given['text']})", {"_module": module, **known, **inputs})
        found = [(t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in tensors(result)]
        numpy.savez(f"{given['made']}/{case}.npz", *found)
"""


class TorchSaveFull(Stage):
    """Save the whole module with torch.save, its source files and a loader.

    The folder is loaded in a fresh Python process without any other files of the project, and
    compared. Loading such a file runs code: use it for your own Python programs, not for files that
    you give to others.
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
        called = expression(module, bundle.arguments)
        kinds = _places(called)
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
        (outputs.model / "load_model.py").write_text(_loader(called, kinds, folders), "utf-8")
        found = _load_elsewhere(ctx, bundle, called, kinds, outputs.model)
        parity = compare(found, _recorded, atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        ctx.figure("bytes", (outputs.model / "model.pt").stat().st_size)


def _places(called: Expression) -> dict[str, tuple[str, str]]:
    """Return the module and the name of each class that a call needs."""
    found = {}
    for word, kind in called.kinds.items():
        if "<locals>" in kind.__qualname__:
            raise StageError(f"forward() takes {kind.__name__}, which is defined inside a function",
                             fix="define it at the top level of a file")  # fmt: skip
        found[word] = ("load_model" if kind is Fields else kind.__module__, kind.__qualname__)
    return found


def _loader(called: Expression, kinds: Mapping[str, tuple[str, str]], folders: list[str]) -> str:
    """Return load_model.py, which says how the model is called."""
    named = [(place, name) for place, name in kinds.values() if place not in ("load_model", "builtins")]
    imports = "".join(f", after `from {place} import {name.partition('.')[0]}`" for place, name in named)
    fields = f"\n\n\n{FIELDS.rstrip()}" if called.kinds.get("Fields") is Fields else ""
    filled = {"folders": repr(folders), "call": f"`model({called.text})`{imports}", "fields": fields}
    return functools.reduce(lambda text, part: text.replace(f"{{{part}}}", filled[part]), filled, _LOADER)


def _copy_code(source: Path, target: Path) -> None:
    """Copy the files to where plain Python imports them by the names that are in the pickle."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / module_path(file.relative_to(source).as_posix())
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _recorded(arrays: bundles.Arrays) -> bundles.Arrays:
    return arrays


def _load_elsewhere(
    ctx: Context, bundle: Bundle, called: Expression, kinds: Mapping[str, tuple[str, str]], folder: Path
) -> list[Case]:
    """Run the cases in a process that imports nothing of ours; return them as expected and found."""
    made = ctx.workdir / "made"
    made.mkdir()
    given = {
        "cases": [case.name for case in bundle.cases], "text": called.text, "words": dict(called.words),
        "kinds": kinds, "path": sys.path, "made": str(made), "results": str(Path(results.__file__)),
        "reference": str(bundle.folder / "reference.npz"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-B", "-I", "-c", _PROOF, str(folder), json.dumps(given)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
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
