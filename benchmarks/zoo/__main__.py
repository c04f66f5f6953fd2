"""Convert the zoo and write its table.

Each model has a process of its own. A line of JSON is written for each model as it is done; models whose
line is in the file already are not converted again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import table
from .entries import Entry
from .zoo import ENTRIES

__all__ = ["chosen", "run"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "zoo.jsonl"
_SECONDS = 1500


def main() -> int:
    """Run, print a line for each model; exit 1 where the product loses to a bare call, or is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", default="*", help="a pattern of names, e.g. 'timm/*'")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th model, from the N-th on")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="the file of results (default: %(default)s)"
    )
    parser.add_argument("--write-docs", action="store_true", help="write docs/zoo.md from the results")
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    done = read(args.json)
    for entry in chosen(args.only, args.part):
        if entry.name in done:
            continue
        (result,) = run([entry])
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False, sort_keys=True) + "\n")
        done[entry.name] = result
        print(table.line(result), flush=True)
    if args.write_docs:
        table.write(ROOT / "docs/zoo.md", [done[entry.name] for entry in ENTRIES if entry.name in done])
    bad = [name for name, result in done.items() if table.verdict(result) in ("loses", "wrong")]
    return 1 if bad else 0


def chosen(only: str = "*", part: str = "1/1") -> Sequence[Entry]:
    """Return the models whose name fits a pattern, and of these every M-th from the N-th on."""
    first, _, step = part.partition("/")
    return [entry for entry in ENTRIES if fnmatch.fnmatch(entry.name, only)][int(first) - 1 :: int(step or 1)]


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the results that a file has, by the model's name; what failed is to be tried again."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines if line.strip()]
    return {result["name"]: result for result in found if "failed" not in result}


def run(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Convert models one after the other in a process of their own, on one thread."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.zoo.one", *(entry.name for entry in entries)], cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=_SECONDS * len(entries))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err = f"it takes more than {_SECONDS} s"
    found: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    lacking = entries[len(found) :]
    return found + [{"name": e.name, "family": e.family, "failed": err[-2000:]} for e in lacking]


if __name__ == "__main__":
    sys.exit(main())
