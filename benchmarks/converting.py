"""Measure conversions: `python -m benchmarks.converting`, `--quick` for one round of the smallest.

`model.prepare` and `onnx.export` beside the bare exporter, which checks at one size; and the repository's
example, cold, beside one script that makes the same calls. Each runs in turns with its peer, the order
changes from round to round, and the ratio of each round's CPU time (of all processes) and wall time is taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from .by_hand.models import EXAMPLES
from .costs import Cost, cost
from .environments import HERE

ROOT = HERE.parent
RUN = [sys.executable, "-m", "deploy_runner", "run"]
EXPORT_GOAL, COLD_GOAL = 1.3, 1.2
_SAVE = "import torch; from benchmarks.by_hand import models; torch.manual_seed(0); "


class Ratio(NamedTuple):
    """What one takes to what the other takes."""

    cpu: float
    wall: float


def ran(command: Sequence[str | Path], folder: Path, home: Path) -> Cost:
    """Run a command, whose store is `home`."""
    env = {"PYTHONPATH": str(ROOT), "DEPLOY_RUNNER_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
           "HF_HUB_DISABLE_PROGRESS_BARS": "1", "AWS_EC2_METADATA_DISABLED": "true",
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    return cost(command, folder, env)


def in_turns(name: str, ours: Callable[[], Cost], bare: Callable[[], Cost], rounds: int) -> list[Ratio]:
    """Return the ratios of each round."""
    ratios = []
    for turn in range(rounds):
        found = {run: run() for run in ((ours, bare) if turn % 2 else (bare, ours))}
        a, b = found[ours], found[bare]
        ratios.append(Ratio(a.cpu_s / b.cpu_s, a.wall_s / b.wall_s))
        shown = ", ".join(
            f"{who} {c.cpu_s:.1f} s of CPU in {c.wall_s:.1f} s" for who, c in (("ours", a), ("by hand", b))
        )
        print(f"{name}: {shown}", flush=True)
    return ratios


def export(name: str, folder: Path, rounds: int) -> list[Ratio]:
    """Compare the two stages, whose weights are ready, with the bare exporter."""
    folder.mkdir()
    shutil.copyfile(HERE / "by_hand/models.py", folder / "models.py")
    weights, model = "${{ stages.weights.outputs.weights }}", "${{ stages.model.outputs.model }}"
    stages = {
        "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "model.pt"}},
        "model": {"uses": "model.prepare", "inputs": {"weights": weights},
                  "with": {"factory": f"models.py:{name}", **EXAMPLES[name]}},
        "onnx": {"uses": "onnx.export", "inputs": {"model": model}},
    }  # fmt: skip
    text = yaml.safe_dump({"version": 1, "name": name.lower(), "stages": stages}, sort_keys=False)
    (folder / "pipeline.yaml").write_text(text)
    home = folder / "home"
    save = f"{_SAVE}torch.save(models.{name}().state_dict(), 'model.pt')"
    ran([sys.executable, "-c", save], folder, home)
    ran([*RUN, "pipeline.yaml", "weights"], folder, home)
    by_hand = [sys.executable, "-m", "benchmarks.by_hand.export", name, "model.pt", "bare.onnx"]
    forced = [*RUN, "pipeline.yaml", "model", "onnx", "--force"]
    found = in_turns(name, lambda: ran(forced, folder, home), lambda: ran(by_hand, folder, home), rounds)
    shutil.rmtree(folder)
    return found


def cold(folder: Path, rounds: int) -> list[Ratio]:
    """Compare the example with an empty store with the script."""

    def ours() -> Cost:
        shutil.rmtree(folder / "home", ignore_errors=True)
        return ran([*RUN, "pipeline.yaml"], ROOT, folder / "home")

    script: list[str | Path] = [sys.executable, "-m", "benchmarks.by_hand.digits", folder / "by-hand"]
    return in_turns("example", ours, lambda: ran(script, ROOT, folder / "home"), rounds)


def main() -> int:
    """Run, print, write `results/converting.json`; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.converting", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of the example and ResNet-50")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the median counts")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    missed, ratios = False, {}
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        found = {"the example": (cold(folder, rounds), COLD_GOAL)}
        for name in ("resnet50",) if args.quick else EXAMPLES:
            found[f"exporting {name}"] = (export(name, folder / name, rounds), EXPORT_GOAL)
    for name, (rows, goal) in found.items():
        middle = Ratio(*(statistics.median(column) for column in zip(*rows, strict=True)))
        missed |= middle.cpu > goal
        ratios[name] = middle._asdict()
        verdict = "MISSED " if middle.cpu > goal else "reached"
        said = f"{middle.cpu:.2f} ({middle.wall:.2f} of its wall time)"
        print(f"{verdict}  {name}: at most {goal} times the CPU time by hand: {said}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "converting.json").write_text(json.dumps(ratios, indent=2))
    return int(missed and not args.quick)


if __name__ == "__main__":
    sys.exit(main())
