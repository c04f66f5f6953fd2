"""Load our server for minutes while it changes models: `python -m benchmarks.soak --minutes 10`.

64 keep-alive connections ask about the four images that two models answer most differently. After a
third of the time the artifact is replaced by the other model and the server told to reload (SIGHUP),
after two thirds it is put back. Every answer is checked: all of it by one model, and never by the old
one once the new one has answered. The memory of the server's processes is read every second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .clients import Clients
from .contenders import OURS
from .digits import Artifacts, Question, distinct, make_artifacts
from .environments import HERE
from .running import Running, running
from .serving import MANY, pin_to_two_cores

IMAGES = 4
WARM_UP = 0.1
"""The part of the time whose memory does not count: buffers and arenas grow to their size."""
MOST_GROWTH = 1.1
"""Memory is level where its median in the last third, after both reloads, is at most this many times that
in the first, before them: while a model is exchanged both are there, and the allocator keeps the room."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The server's resident memory after the warm-up in MiB; the slope is that of the last third."""

    first_third: float
    last_third: float
    slope_per_minute: float

    @classmethod
    def of(cls, samples: list[tuple[float, int]]) -> Memory:
        """Summarise samples of (seconds, bytes)."""
        minutes, size = np.array(samples[int(len(samples) * WARM_UP) :]).T / [[60], [2**20]]
        third = max(1, len(size) // 3)
        slope = np.polyfit(minutes[-third:], size[-third:], 1)[0]
        return cls(float(np.median(size[:third])), float(np.median(size[-third:])), float(slope))

    @property
    def growth(self) -> float:
        """Return the last third's memory over that of the first."""
        return self.last_third / self.first_third


async def watch(server: Running, samples: list[tuple[float, int]]) -> None:
    """Read the memory every second."""
    loop = asyncio.get_running_loop()
    while True:
        samples.append((loop.time(), server.rss_bytes()))
        await asyncio.sleep(1)


async def exchange(
    server: Running, clients: Clients, served: Path, models: list[tuple[int, Path]], pause_s: float
) -> None:
    """Put numbered models in place of the served one, each after a pause."""
    for number, model in models:
        await asyncio.sleep(pause_s)
        put(model, served)
        clients.witness.wanted = number
        server.process.send_signal(signal.SIGHUP)


def put(model: Path, served: Path) -> None:
    """Replace the served file at once."""
    new = served.with_name("new.onnx")
    shutil.copyfile(model, new)
    os.replace(new, served)


async def soak(
    server: Running, clients: Clients, served: Path, artifacts: Artifacts, seconds: float
) -> Memory:
    """Load a server, exchange its model twice, and return how its memory went."""
    samples: list[tuple[float, int]] = []
    models = [(1, artifacts.int8), (0, artifacts.onnx)]
    beside = [
        asyncio.create_task(watch(server, samples)),
        asyncio.create_task(exchange(server, clients, served, models, seconds / 3)),
    ]
    await clients.press(MANY, seconds)
    beside[0].cancel()
    await beside[1]
    return Memory.of(samples)


def main() -> int:
    """Run, print, write `results/soak.json`; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long to load the server (default: 10)")
    seconds = parser.parse_args().minutes * 60
    pin_to_two_cores()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        artifacts = make_artifacts(folder)
        images = distinct(artifacts.onnx, artifacts.int8, IMAGES)
        question = Question.of(images, artifacts.onnx, artifacts.int8)
        served = folder / "served.onnx"
        put(artifacts.onnx, served)
        # Several workers don't change the model in the same instant, as the witness has it.
        alone = replace(OURS, env={"SERVE_WORKERS": "1"})
        with running(alone, served, folder, question.body) as server:
            clients = Clients(server.port, question)
            memory = asyncio.run(soak(server, clients, served, artifacts, seconds))
    return report(clients, memory, seconds)


def report(clients: Clients, memory: Memory, seconds: float) -> int:
    """Print and write the figures; return the exit code."""
    for what, count in clients.failures.most_common(5):
        print(f"{count} times: {what}")
    level = (
        f"{memory.growth:.3f}: {memory.first_third:.1f} MiB in the first third, {memory.last_third:.1f} MiB "
        f"in the last, there {memory.slope_per_minute:+.3f} MiB a minute"
    )
    said = [
        (
            "no failed request",
            f"{clients.failed} of {clients.answered + clients.failed:,}",
            not clients.failed,
        ),
        ("two hot reloads", str(clients.witness.reloads), clients.witness.reloads == 2),
        (f"memory stays level (below {MOST_GROWTH})", level, memory.growth < MOST_GROWTH),
    ]
    print(f"{seconds / 60:g} minutes, {MANY} clients, {clients.answered / seconds:,.0f} requests a second")
    for what, words, reached in said:
        print(f"{'reached' if reached else 'MISSED '}  {what}: {words}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "soak.json").write_text(json.dumps({"seconds": seconds, "targets": said}, indent=2))
    return 0 if all(reached for _, _, reached in said) else 1


if __name__ == "__main__":
    sys.exit(main())
