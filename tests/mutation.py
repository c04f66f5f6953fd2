"""Break a module in every way that mutmut knows, and count how often the module's own tests notice.

    python -m tests.mutation                     every module of MODULES
    python -m tests.mutation graph keys          these
    python -m tests.mutation --sample 40 graph   so many mutants of it, the same ones each time

Each mutant changes one expression inside a function: an operator, a constant, an argument that is left out.
What stands outside functions, and functions with a decorator, mutmut leaves alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

__all__ = ["LEAST", "MODULES", "Score", "measure"]

LEAST = 0.85
"""The share of its mutants that a module's own tests have to notice."""

MODULES = {
    "keys": (
        "deploy_runner/engine/keys.py",
        ["tests/unit/test_keys.py", "tests/unit/test_key_environment.py"],
    ),
    "graph": ("deploy_runner/pipeline/graph.py", ["tests/unit/test_graph.py"]),
    "expressions": ("deploy_runner/pipeline/expressions.py", ["tests/unit/test_expressions.py"]),
    "compare": ("deploy_runner/stages/model/compare.py", ["tests/unit/test_compare.py"]),
    "backoff": ("deploy_runner/stages/push/backoff.py", ["tests/unit/test_backoff.py"]),
    "plan": ("deploy_runner/engine/plan.py", ["tests/unit/test_plan.py"]),
    "cas": ("deploy_runner/store/cas.py", ["tests/unit/test_cas.py", "tests/unit/test_cas_shared.py"]),
    "records": ("deploy_runner/store/actions.py", ["tests/unit/test_records.py"]),
}
"""Module → its file, and the tests of its own."""

_NOTICED = {"killed", "timeout", "segfault"}
_UNNOTICED = {"survived", "no tests"}


class Score(NamedTuple):
    """How many mutants were tried, and the differences that no test noticed."""

    tried: int
    survivors: tuple[str, ...]

    @property
    def killed(self) -> float:
        """Return the share that was noticed."""
        return 1 - len(self.survivors) / self.tried


def measure(module: str, *, sample: int | None = None, tests: Sequence[str] = ()) -> Score:
    """Return the score of a module: of so many of its mutants if `sample` is given, by other tests if some are.

    Raises RuntimeError where mutmut does not try them all.
    """
    source, own = MODULES[module]
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        _copy(folder, source, tests or own)
        chosen = _chosen(folder, source, sample)
        done = _mutmut(folder, *chosen)
        ended = _ended(folder / "mutants" / f"{source}.meta")
        tried = {mutant: ended.get(mutant, "") for mutant in chosen or ended}
        if done.returncode or not tried or not set(tried.values()) <= _NOTICED | _UNNOTICED:
            raise RuntimeError(f"mutmut did not try {module}'s mutants:\n{done.stdout[-3000:]}{done.stderr}")
        if lost := [file for file in _files(folder) if not (folder / "mutants" / file).exists()]:
            raise RuntimeError(f"a mutant of {module} has removed {lost[0]}, which the next ones needed")
        survivors = [mutant for mutant, how in tried.items() if how in _UNNOTICED]
        return Score(len(tried), tuple(_differences(folder, source, survivors)))


def _copy(folder: Path, source: str, tests: Sequence[str]) -> None:
    """Lay the project out for mutmut, which writes beside what it reads."""
    ignored = shutil.ignore_patterns("__pycache__", "cases")
    for part in ("deploy_runner", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    settings = f"""
[tool.mutmut]
source_paths = ["deploy_runner"]
only_mutate = ["{source}"]
pytest_add_cli_args = ["-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
pytest_add_cli_args_test_selection = {json.dumps(tests)}
"""
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)


def _files(folder: Path) -> list[Path]:
    """Return what mutmut copies, by its relative path."""
    return [
        file.relative_to(folder)
        for part in ("deploy_runner", "tests")
        for file in (folder / part).rglob("*.py")
    ]


def _chosen(folder: Path, source: str, sample: int | None) -> list[str]:
    """Return the names of the mutants to try; none means all."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    if sample is None:
        return []
    with contextlib.chdir(folder):  # Its settings are read from here.
        made = mutate_file_contents(source, Path(source).read_text()).mutant_names
    names = [get_mutant_name(Path(source), name) for name in made]
    return random.Random(source).sample(names, min(sample, len(names)))


def _ended(meta: Path) -> dict[str, str]:
    """Return mutant → how its tests ended, in mutmut's words."""
    from mutmut.stats import status_by_exit_code

    codes = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    return {mutant: status_by_exit_code[code] for mutant, code in codes.items()}


def _differences(folder: Path, source: str, mutants: Sequence[str]) -> list[str]:
    """Return each mutant's name and what it changes."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    with contextlib.chdir(folder):
        return [f"{mutant}\n{get_diff_for_mutant(mutant, path=source)}" for mutant in mutants]


def _mutmut(folder: Path, *mutants: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "mutmut", "run", "--max-children", "1", *mutants],
        cwd=folder, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
    )  # fmt: skip


def main() -> int:
    """Print a line for each module, and with `--show` what its tests did not notice."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", default=list(MODULES), metavar="MODULE", help=", ".join(MODULES)
    )
    parser.add_argument("--sample", type=int, help="how many mutants of each (default: all)")
    parser.add_argument("--show", action="store_true", help="print what no test noticed")
    options = parser.parse_args()
    low = False
    for module in options.modules:
        score = measure(module, sample=options.sample)
        print(f"{module:12} {score.killed:4.0%} of {score.tried}", flush=True)
        low |= score.killed < LEAST
        if options.show:
            print(*score.survivors, sep="\n", flush=True)
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
