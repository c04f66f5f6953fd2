"""The shared cache beside bare obstore on the same server: `python -m benchmarks.shared_cache [--quick]`.

The server is moto's, so figures are ratios: it is the limit of most of them. Runs are interleaved, and
figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
from obstore.store import from_url

import deploy_runner
from deploy_runner.local.servers import dry_run
from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.remote import Remote, part_bytes
from deploy_runner.store.shared import SharedStore
from deploy_runner.store.stat import sha256_file
from deploy_runner.store.transfer import download, read_parts
from deploy_runner.types import Artifact, RemoteSpec

_URL = "s3://shared/cache"
_KEY = "benchmark of the shared cache, no secret"


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """Start the local S3, with a bucket, and point this process and its children to it."""
    with dry_run(folder, services=("aws",), log=lambda line: None) as env:
        os.environ.update(env, DEPLOY_RUNNER_CACHE_KEY=_KEY)
        import boto3

        boto3.client("s3").create_bucket(Bucket="shared")
        yield


def bare() -> Any:
    """Return obstore's client as it comes."""
    return from_url(_URL, client_options={"allow_http": True})


def medians(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each; every round runs each once."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def project(folder: Path, count: int, *, chain: bool) -> None:
    """Write a pipeline of trivial stages: in a row, or side by side as a matrix."""
    folder.mkdir()
    (folder / "in.txt").write_text("hello\n")
    lines = ["version: 1", "name: bench", f"cache: {{remote: {_URL}, push: true}}", "stages:"]
    stage = (
        "{uses: run.command, outputs: {x: x}, inputs: {i: '%s'}, with: {command: 'echo %s > $OUTPUT_X'}%s}"
    )
    if chain:
        sources = ["in.txt", *(f"${{{{ stages.s{n}.outputs.x }}}}" for n in range(count - 1))]
        lines += [f"  s{n}: {stage % (source, n, '')}" for n, source in enumerate(sources)]
    else:
        numbers = f", matrix: {{n: {list(range(count))}}}"
        lines.append(f"  s: {stage % ('in.txt', '${{ matrix.n }}', numbers)}")
    (folder / "pipeline.yaml").write_text("\n".join(lines) + "\n")


def fill(folder: Path) -> list[str]:
    """Put the records of a project's stages into the shared cache, as if a machine had run them."""
    pipeline = deploy_runner.load(folder / "pipeline.yaml")
    store, planner = pipeline.store, pipeline.planner()
    assert isinstance(store, SharedStore)
    made: dict[str, dict[str, Artifact]] = {}
    keys = []
    with store.hold(), ThreadPoolExecutor(8) as pool:
        for node in pipeline.graph.stages.values():
            key, image, *_ = planner.identify(node, made)
            digest = hashlib.sha256(node.id.encode()).hexdigest()
            made[node.id] = {"x": Artifact(digest, "file", 4)}
            record = ActionRecord(key, node.uses, made[node.id], {}, image, 0.01)
            pool.submit(store.send_record, record)
            keys.append(key)
    shutil.rmtree(folder / ".deploy-runner")
    return keys


def deploy(folder: Path, *args: str) -> None:
    """Run the command line in a project."""
    command = [sys.executable, "-m", "deploy_runner", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def hits(folder: Path, count: int, rounds: int, *, chain: bool) -> None:
    """Compare a run of hits on a cold machine with bare gets of the same records."""
    place = folder / f"hits-{chain}"
    project(place, count, chain=chain)
    keys = fill(place)
    deploy(place, "plan")  # Compiles; its records are forgotten again below.

    def cold() -> None:
        shutil.rmtree(place / ".deploy-runner" / "actions")
        deploy(place, "run", "-q")

    def gets() -> None:
        client = bare()
        for key in keys:
            obstore.get(client, f"v1/records/{key[:2]}/{key[2:]}.json").bytes()

    times = medians({"run": cold, "gets": gets}, rounds)
    objects = list((place / ".deploy-runner" / "cas").rglob("*/*/*"))
    shape = "in a row" if chain else "side by side"
    said = f"{times['run']:.2f} s beside {times['gets']:.2f} s of bare gets, {len(objects)} objects came"
    verdict(f"{count} hits {shape}, cold machine", said, times["run"] / times["gets"], most=3)


def plans(folder: Path, count: int, rounds: int) -> None:
    """Compare plans of two sizes against the shared cache."""
    seconds = {}
    for size in (count // 4, count):
        place = folder / f"plan-{size}"
        project(place, size, chain=False)
        fill(place)
        deploy(place, "plan")

        def plan(place: Path = place) -> None:
            shutil.rmtree(place / ".deploy-runner" / "actions")
            deploy(place, "plan")

        seconds[size] = medians({"plan": plan}, rounds)["plan"]
    small, large = seconds.values()
    said = f"{large:.2f} s for {count} stages beside {small:.2f} s for {count // 4}"
    verdict("plan against the shared cache, 4 times the stages", said, large / small, most=4.6)


def transfers(folder: Path, mebibytes: int, rounds: int) -> None:
    """Compare one large object up and down with bare obstore, to and from a file."""
    source, target = folder / "object", folder / "target"
    with source.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))
    digest = sha256_file(source)
    size = mebibytes << 20
    remote, client = Remote(RemoteSpec(_URL), os.environ), bare()

    def ignore(count: int) -> None:
        return

    def up() -> None:
        remote.send("ours", read_parts(str(source), digest, part_bytes(size), ignore), size)

    def down() -> None:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        assert download(remote, "ours", size, fd, ignore) == digest
        os.fsync(fd)
        os.close(fd)

    def bare_down() -> None:
        with target.open("wb") as file:
            for chunk in obstore.get(client, "bare").stream():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    up()
    down()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    verdict(f"memory for {mebibytes} MiB up and down", f"{grown} MiB more", grown, most=64)
    times = medians(
        {
            "up": up,
            "bare up": lambda: obstore.put(client, "bare", source),
            "down": down,
            "bare down": bare_down,
        },
        rounds,
    )
    for way in ("up", "down"):
        ratio = times[f"bare {way}"] / times[way]
        said = f"{times[way]:.2f} s beside {times[f'bare {way}']:.2f} s of bare obstore"
        verdict(f"{mebibytes} MiB {way}, hashing included", said, ratio, least=0.9)


def verdict(what: str, said: str, ratio: float, *, least: float = 0, most: float = float("inf")) -> None:
    """Print a figure beside its limit."""
    reached = least <= ratio <= most
    limit = f"at least {least:g}" if least else f"at most {most:g}"
    print(f"{'reached' if reached else 'MISSED '}  {what}: {ratio:.2f} ({limit}); {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a smoke run")
    quick = parser.parse_args().quick
    rounds = 1 if quick else 5
    with tempfile.TemporaryDirectory() as name, server(Path(name) / "server"):
        folder = Path(name)
        transfers(folder, 32 if quick else 1024, rounds)
        for chain in (False, True):
            hits(folder, 50 if quick else 1000, rounds, chain=chain)
        plans(folder, 400 if quick else 10_000, 1 if quick else 3)


if __name__ == "__main__":
    main()
