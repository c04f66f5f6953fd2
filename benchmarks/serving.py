"""Measure the servers side by side: `python -m benchmarks.serving`, `--quick` for a smoke run.

One model, one request, the same two cores. Every round starts each server alone, checks its
answers, warms it up, loads it from 1, 8, 64 and 256 keep-alive connections and checks its answers again; the
order turns from round to round. Ratios are taken within a round, so that what slows the machine
slows both sides; the figures are medians over the rounds. Server and load generator share the
same cores in the same way for all: a server that leaves less to the generator is asked less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .contenders import CONSTANT, CONTENDERS, OURS, Contender
from .digits import Artifacts, Question, held_out, make_artifacts
from .environments import HERE
from .running import Running, running
from .wrk import Load, press, require_wrk

CORES = 2
CLIENTS = (1, 8, 64, 256)
MANY = 64
"""By so many the throughputs and the CPU are compared."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One server in one round; `cpu_us` is the CPU that its processes used for a request."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_us: float
    generator_cpu: float


Rounds = dict[str, list[dict[int, Figures]]]
"""Of each server in each round, by the number of clients."""


def pin_to_two_cores() -> list[int]:
    """Pin this process, and so all that it starts, to two cores; return them."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    return cores


def check(server: Running, question: Question) -> None:
    """Stop where a server's answer is not the model's."""
    reply = server.ask(question.body)
    if question.answered_by(reply) is None:
        raise SystemExit(f"{server.name} answers something else than the model does: {reply[:300]!r}")


class Bench:
    """One session: a folder with the artifacts and the request."""

    def __init__(self, folder: Path, *, seconds: int, warm_s: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.warm_s = warm_s
        self.artifacts: Artifacts = make_artifacts(folder)
        self.question = Question.of(held_out()[:1], self.artifacts.onnx)
        self.body = folder / "body.json"
        self.body.write_bytes(self.question.body)

    def measure(self, contender: Contender) -> dict[int, Figures]:
        """Start a server, load it by ever more clients, stop it."""
        found = {}
        model = getattr(self.artifacts, contender.format)
        with running(contender, model, self.folder, self.question.body) as server:
            check(server, self.question)
            press(server.url, self.body, seconds=self.warm_s, clients=MANY)
            for clients in CLIENTS:
                before = server.cpu_s()
                load = press(server.url, self.body, seconds=self.seconds, clients=clients)
                found[clients] = _figures(load, server.cpu_s() - before)
                check(server, self.question)
        return found

    def rounds(self, count: int) -> Rounds:
        """Measure every server once a round, each round beginning with the next one."""
        found: Rounds = {c.name: [] for c in CONTENDERS}
        for i in range(count):
            turn = i % len(CONTENDERS)
            for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
                figures = self.measure(contender)
                found[contender.name].append(figures)
                for clients, row in figures.items():
                    print(f"round {i + 1}  {clients:>3}  {_row(contender.name, row)}", flush=True)
        return found


def _figures(load: Load, used_s: float) -> Figures:
    return Figures(load.per_second, load.p50_ms, load.p99_ms, load.failed,
                   used_s / max(1, load.requests) * 1e6, load.own_cpu_s / load.seconds)  # fmt: skip


def _row(name: str, f: Figures) -> str:
    return (
        f"{name:<9} {f.per_second:>8,.0f}/s  p50 {f.p50_ms:>7.2f} ms  p99 {f.p99_ms:>8.2f} ms  "
        f"failed {f.failed}  CPU {f.cpu_us:>4.0f} µs a request (wrk: {f.generator_cpu:.2f} cores)"
    )


def medians(rows: list[Figures]) -> Figures:
    """Return the median of each figure, and the sum of the failed requests."""
    middle = {name: statistics.median(asdict(row)[name] for row in rows) for name in asdict(rows[0])}
    return Figures(**middle | {"failed": sum(row.failed for row in rows)})


def ratio(found: Rounds, peer: str, figure: Callable[[Figures], float], clients: int = MANY) -> float:
    """Return how many times a peer's figure ours is: the median of the rounds."""
    pairs = zip(found[OURS.name], found[peer], strict=True)
    return statistics.median(figure(ours[clients]) / figure(theirs[clients]) for ours, theirs in pairs)


def verdicts(found: Rounds) -> list[tuple[str, str, bool]]:
    """Compare with the targets: what, the figure in words, whether it is reached."""
    naive = ratio(found, "naive", lambda f: f.per_second)
    late = ratio(found, "naive", lambda f: f.p99_ms)
    cpu = ratio(found, CONSTANT.name, lambda f: f.cpu_us)
    rows = [
        ("at least 3.5 times the throughput of the naive handler", f"{naive:.2f} times", naive >= 3.5),
        ("p99 below half of the naive handler's", f"{late:.2f} of its time", late < 0.5),
        ("at most twice the CPU of a constant answer", f"{cpu:.2f} times", cpu <= 2),
    ]
    for clients in CLIENTS:
        late = ratio(found, "litserve", lambda f: f.p99_ms, clients)
        rows.append((f"p99 at {clients} clients not above litserve's", f"{late:.2f} of its time", late <= 1))
    for peer in ("litserve", "bentoml"):
        more = ratio(found, peer, lambda f: f.per_second)
        late = ratio(found, peer, lambda f: f.p99_ms)
        said = f"{more:.2f} times its throughput, {late:.2f} of its p99"
        rows.append((f"not slower than {peer}", said, more >= 1))
    failed = sum(f.failed for figures in found[OURS.name] for f in figures.values())
    return [*rows, ("no failed request", str(failed), not failed)]


def main() -> int:
    """Run, print, write `results/serving.json`; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of load on a server in a round")
    args = parser.parse_args()
    require_wrk()
    cores = pin_to_two_cores()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(Path(folder), seconds=2 if args.quick else args.seconds, warm_s=1 if args.quick else 3)
        found = bench.rounds(1 if args.quick else args.rounds)
    said = verdicts(found)
    for clients in CLIENTS:
        print(f"\n{clients} clients, cores {cores}, medians:")
        for name, rows in found.items():
            print(_row(name, medians([row[clients] for row in rows])))
    for what, words, reached in said:
        print(f"{'reached' if reached else 'MISSED '}  {what}: {words}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    figures = {
        name: [{clients: asdict(row) for clients, row in figures.items()} for figures in rows]
        for name, rows in found.items()
    }
    (results / "serving.json").write_text(json.dumps({"rounds": figures, "targets": said}, indent=2))
    return 0 if args.quick or all(reached for _, _, reached in said) else 1


if __name__ == "__main__":
    sys.exit(main())
