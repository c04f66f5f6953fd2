"""Run the benchmarks and print the ratios; `--quick` for a smoke run.

Every peer lives in an environment of its own below `benchmarks/.envs`, made on first use, and
does the same work: a chain of shell commands, each reading what the one before wrote. The runs
of all peers are interleaved, so that what slows the machine slows all of them; figures are
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .costs import cost
from .environments import HERE, environment
from .peers import PEERS, Peer


def timed(command: list[str], folder: Path) -> float:
    """Run a command and return its seconds."""
    return cost(command, folder).wall_s


def interleaved(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each; every round runs each once."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            times[name].append(run())
    return {name: statistics.median(values) for name, values in times.items()}


class Bench:
    """One session: projects in temporary folders, figures in a dictionary."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.bins = {peer.name: environment(peer.name, peer.packages) for peer in PEERS}
        self.figures: dict[str, float] = {}
        self.verdicts: list[tuple[str, str, bool]] = []

    def project(self, peer: Peer, count: int, name: str, *, extra: str = "") -> Path:
        """Write a chain of `count` commands for a peer."""
        folder = self.folder / f"{peer.name}-{name}"
        folder.mkdir()
        (folder / "in.txt").write_text("hello\n")
        peer.write(folder, count, extra)
        for command in peer.setup:
            subprocess.run([str(self.bins[peer.name] / command[0]), *command[1:]], cwd=folder, check=True,
                           capture_output=True)  # fmt: skip
        return folder

    def command(self, peer: Peer) -> list[str]:
        """Return the command that brings a project up to date."""
        return [str(self.bins[peer.name] / peer.run[0]), *peer.run[1:]]

    def verdict(self, what: str, said: str, *, reached: bool) -> None:
        """Note whether a target is reached."""
        self.verdicts.append((what, said, reached))
        print(f"{'reached' if reached else 'MISSED '}  {what}: {said}", flush=True)

    def no_op(self, count: int, peers: tuple[Peer, ...]) -> dict[str, float]:
        """Measure a run with nothing to do."""
        folders = {p.name: self.project(p, count, f"noop{count}") for p in peers}
        for p in peers:
            timed(self.command(p), folders[p.name])
        time.sleep(2.1)  # Times younger than this are not trusted: the first no-op would hash.
        for p in peers:
            timed(self.command(p), folders[p.name])
        found = interleaved(
            {p.name: lambda p=p: timed(self.command(p), folders[p.name]) for p in peers},  # type: ignore[misc]
            self.rounds,
        )
        self.figures |= {f"no-op {count} {name}": seconds for name, seconds in found.items()}
        return found

    def fresh(self, count: int) -> None:
        """Measure a fresh chain, and how much of it is more than the processes themselves."""
        ours, dvc = PEERS[0], PEERS[1]
        number = iter(range(10_000))

        def run(peer: Peer) -> float:
            return timed(self.command(peer), self.project(peer, count, f"fresh{next(number)}"))

        def bare() -> float:
            started = time.perf_counter()
            for _ in range(count):
                subprocess.run(["/bin/sh", "-c", "cat in.txt > o.txt"], cwd=self.folder, check=True)
            return time.perf_counter() - started

        (self.folder / "in.txt").write_text("hello\n")
        found = interleaved(
            {"ours": lambda: run(ours), "dvc": lambda: run(dvc), "bare": bare}, max(1, self.rounds // 4)
        )
        self.figures |= {f"fresh {count} {name}": seconds for name, seconds in found.items()}
        ratio = found["dvc"] / found["ours"]
        self.verdict(
            "a fresh chain at least 10 times faster than dvc", f"{ratio:.1f} times", reached=ratio >= 10
        )
        overhead = (found["ours"] - found["bare"]) / count * 1e3
        self.verdict("overhead of a fresh stage at most 4 ms", f"{overhead:.1f} ms", reached=overhead <= 4)

    def large_input(self, size: int) -> None:
        """Measure a no-op with an unchanged large input beside one without."""
        ours = PEERS[0]
        without = self.project(ours, 10, "small")
        with_it = self.project(ours, 10, "large", extra="big.bin")
        with (with_it / "big.bin").open("wb") as file:
            for _ in range(size >> 20):
                file.write(b"\1" * (1 << 20))
        os.sync()  # Else the disk is busy with this file while the runs sync theirs.
        for folder in (without, with_it):
            timed(self.command(ours), folder)
        time.sleep(2.1)
        for folder in (without, with_it):
            timed(self.command(ours), folder)
        found = interleaved(
            {
                "without": lambda: timed(self.command(ours), without),
                "with": lambda: timed(self.command(ours), with_it),
            },
            self.rounds,
        )
        self.figures |= {f"no-op {name} {size >> 20} MiB": seconds for name, seconds in found.items()}
        ratio = found["with"] / found["without"]
        self.verdict(
            "an unchanged large input costs no re-hash (below 1.2)", f"{ratio:.2f}", reached=ratio <= 1.2
        )

    def reading(self, size: int) -> None:
        """Measure a stage that reads what another has made, beside the same reading by hand."""
        folder = self.folder / "reading"
        folder.mkdir()
        (folder / "pipeline.yaml").write_text(
            "version: 1\nname: reading\nstages:\n"
            "  make: {uses: run.command, outputs: {y: y},"
            f" with: {{command: head -c {size} /dev/zero > $OUTPUT_Y}}}}\n"
            '  read: {uses: run.command, inputs: {y: "${{ stages.make.outputs.y }}"}, outputs: {s: s},'
            " with: {command: sha256sum < $INPUT_Y > $OUTPUT_S}}\n"
        )
        ours = self.command(PEERS[0])
        timed(ours, folder)
        time.sleep(2.1)
        timed(ours, folder)  # It remembers the object from now on.
        (made,) = (p for p in (folder / ".deploy-runner/cas").rglob("*") if p.stat().st_size == size)
        written = []

        def read() -> float:
            found = cost([*ours, "read", "--force"], folder)
            written.append(found.written_bytes)
            return found.cpu_s

        found = interleaved(
            {"ours": read, "by hand": lambda: cost(["sha256sum", str(made)], folder).cpu_s}, self.rounds
        )
        self.figures |= {f"CPU of reading {size >> 20} MiB, {name}": s for name, s in found.items()}
        most = max(written) >> 20
        self.verdict("a stage that reads a large input writes nothing", f"{most} MiB", reached=most < 2)
        ratio = found["ours"] / found["by hand"]
        self.verdict("and takes at most 1.3 times the CPU of reading", f"{ratio:.2f}", reached=ratio <= 1.3)

    def side_by_side(self, count: int) -> None:
        """Measure stages that only wait, eight at a time, beside xargs."""
        folder = self.folder / "waiting"
        folder.mkdir()
        rows = (
            f"  s{i}: {{uses: run.command, outputs: {{o: o}},"
            f" with: {{command: sleep 0.5; echo {i} > $OUTPUT_O}}}}\n"
            for i in range(count)
        )
        (folder / "pipeline.yaml").write_text("version: 1\nname: waiting\nstages:\n" + "".join(rows))
        ours = [*self.command(PEERS[0]), "--cpu", "8", "--force"]
        hand = ["sh", "-c", f"seq {count} | xargs -P 8 -I% sh -c 'sleep 0.5; echo % > o'"]
        found = interleaved(
            {"ours": lambda: timed(ours, folder), "xargs": lambda: timed(hand, folder)},
            max(1, self.rounds // 4),
        )
        self.figures |= {f"{count} waiting stages, {name}": seconds for name, seconds in found.items()}
        ratio = found["ours"] / found["xargs"]
        self.verdict("stages that wait take at most 1.1 times xargs", f"{ratio:.2f}", reached=ratio <= 1.1)

    def all(self, *, quick: bool) -> None:
        """Run every case of the list."""
        ours, dvc, doit = PEERS
        count = 10 if quick else 100
        small = self.no_op(count, (ours, dvc, doit))
        ratio = small["dvc"] / small["ours"]
        self.verdict(
            f"a no-op of {count} at least 8 times faster than dvc", f"{ratio:.1f} times", reached=ratio >= 8
        )
        ratio = small["ours"] / small["doit"]
        self.verdict(
            f"a no-op of {count} not slower than doit", f"{ratio:.2f} of its time", reached=ratio <= 1
        )
        large = self.no_op(10 * count, (ours, doit))
        growth = large["ours"] / small["ours"]
        self.verdict(
            "ten times the stages in under 3 times the time", f"{growth:.2f} times", reached=growth < 3
        )
        self.fresh(count)
        self.large_input((16 if quick else 1024) << 20)
        self.reading((16 if quick else 1024) << 20)
        self.side_by_side(8 if quick else 64)


def main() -> int:
    """Run, print, write `results/latest.json`; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each; the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(Path(folder), 2 if args.quick else args.rounds)
        bench.all(quick=args.quick)
    for name, seconds in bench.figures.items():
        print(f"{name:<28} {seconds * 1e3:>9.1f} ms")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "latest.json").write_text(
        json.dumps({"seconds": bench.figures, "targets": bench.verdicts}, indent=2)
    )
    return 0 if args.quick or all(reached for _, _, reached in bench.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
