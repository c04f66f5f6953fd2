"""What reads an artifact's bytes downloads them from the shared cache, or says why it can't."""

from __future__ import annotations

import shutil
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import DIGITS, Project
from tests.machines import Bucket, Share, machine, objects

STEPS = """
def many(ctx, inputs, outputs, files=30):
    for n in range(files):
        place = outputs["made"] / f"Teil {n % 7} ä" / f"größe {n}.bin"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"" if n == 0 else b"%d" % n * n)

def odd(ctx, inputs, outputs):
    outputs["made"].write_bytes("ü".encode())

def empty(ctx, inputs, outputs):
    outputs["made"].write_bytes(b"")
"""
STAGES = """
many: {uses: run.python, with: {function: "steps.py:many"}, outputs: {made: "viele Dinge/"}}
odd: {uses: run.python, with: {function: "steps.py:odd"}, outputs: {made: "ein Name ü.txt"}}
empty: {uses: run.python, with: {function: "steps.py:empty"}, outputs: {made: empty.bin}}
"""


@pytest.fixture
def odd(project: Project) -> Project:
    """A project whose outputs have names and sizes that are not usual."""
    project.write("steps.py", STEPS)
    project.pipeline(STAGES, head="cache: {push: true}\n")
    return project


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_get_downloads_folders_empty_files_and_names_with_spaces(odd: Project, shared: Share) -> None:
    one, two = machine(odd, shared, "one"), machine(odd, shared, "two")
    odd.run(**one)
    assert odd.cli("get", "odd", **two).stdout == "ein Name ü.txt\n"
    assert (odd.folder / "ein Name ü.txt").read_text() == "ü"
    assert len(objects(two)) == 1
    odd.cli("get", "empty", **two)
    assert (odd.folder / "empty.bin").read_bytes() == b""
    odd.cli("get", "many", "--to", "first", **one)
    odd.cli("get", "many", "--to", "second", **two)
    first, second = tree(odd.folder / "first"), tree(odd.folder / "second")
    assert len(second) == 30
    assert first == second
    assert odd.run(**two)["hit"] == 3


def test_a_folder_of_2000_files_is_downloaded_whole(odd: Project, share: Share) -> None:
    odd.pipeline(STAGES.replace('many"}', 'many", params: {files: 2000}}'), head="cache: {push: true}\n")
    one, two = machine(odd, share, "one"), machine(odd, share, "two")
    odd.run("pipeline.yaml", "many", **one)
    odd.cli("get", "many", "--to", "first", **one)
    odd.cli("get", "many", "--to", "second", **two)
    first, second = tree(odd.folder / "first"), tree(odd.folder / "second")
    assert len(second) == 2000
    assert first == second


def test_what_expired_is_said_and_the_next_run_rebuilds_it(chain: Project, shared: Share) -> None:
    chain.pipeline(
        'a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}', head="cache: {push: true}\n"
    )
    one, two = machine(chain, shared, "one"), machine(chain, shared, "two")
    chain.run(**one)
    (name,) = shared.names("objects")
    shared.remove(name)
    said = chain.cli("get", "a", exits=1, **two).stderr
    assert said == (
        "error: a is missing in the store, and the shared cache does not have it any more "
        "(run `deploy-runner run pipeline.yaml a` to rebuild it)\n"
    )
    assert "the output `text` is missing in the store" in chain.cli("get", "a", exits=2, **two).stderr
    assert chain.states(**two) == {"a": "healed"}
    assert chain.output("a", **two) == b"HELLO!"
    assert shared.names("objects") == [name]


def test_a_damaged_object_is_not_taken(chain: Project, shared: Share) -> None:
    chain.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head="cache: {push: true}\n")
    one, two = machine(chain, shared, "one"), machine(chain, shared, "two")
    chain.run(**one)
    (name,) = shared.names("objects")
    shared.write(name, b"HELLA")
    assert "does not have it any more" in chain.cli("get", "a", exits=1, **two).stderr
    assert not objects(two)
    assert not (chain.folder / "upper.txt").exists()
    assert chain.states(**two) == {"a": "healed"}
    assert shared.read(name) == b"HELLO"
    assert chain.output("a", **machine(chain, shared, "three")) == b"HELLO"


def test_a_remote_that_is_gone_is_said_in_a_sentence(chain: Project, bucket: Bucket) -> None:
    chain.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head="cache: {push: true, timeout: 1s}\n")
    one, two = machine(chain, bucket, "one"), machine(chain, bucket, "two")
    chain.run(**one)
    chain.run(**two)
    assert not objects(two)
    two["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    note, error = chain.cli("get", "a", exits=1, **two).stderr.splitlines()
    assert note.startswith(f"continuing without the shared cache: {bucket.url} can't be read: ")
    assert error == (
        "error: a is missing in the store, and the shared cache can't be read "
        "(try again later, or run `deploy-runner run pipeline.yaml a --force` to rebuild it)"
    )
    chain.cli("run", "pipeline.yaml", "a", "--force", **two)
    assert chain.output("a", **two) == b"HELLO"


def test_verbs_that_only_look_say_that_a_remote_is_gone(chain: Project, bucket: Bucket) -> None:
    env = machine(chain, bucket, "one") | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    for verb in ("plan", "explain"):
        done = chain.cli(verb, "a", **env)
        assert done.stderr.startswith("continuing without the shared cache: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_report_shows_the_pictures_of_hits(odd: Project, share: Share) -> None:
    odd.pipeline(
        """
        plot: {uses: run.python, with: {function: "steps.py:odd"}, outputs: {made: plot.svg}}
        text: {uses: text.upper, inputs: {text: in.txt}}
        """,
        head="cache: {push: true}\n",
    )
    one, two = machine(odd, share, "one"), machine(odd, share, "two")
    odd.run(**one)
    odd.write("in.txt", "changed")
    run = odd.run(**two)
    assert {id_: stage["state"] for id_, stage in run["stages"].items()} == {"plot": "hit", "text": "ran"}
    page = (Path(two["DEPLOY_RUNNER_HOME"]) / "runs" / run["run"] / "report.html").read_text()
    assert b64encode("ü".encode()).decode() in page


def test_convert_copies_what_another_machine_made(tmp_path: Path, share: Share) -> None:
    folder = Project(tmp_path / "convert")
    for name in ("digits.pt", "model.py"):
        shutil.copy(DIGITS / name, folder.folder / name)
    wanted = ("--factory", "model.py:build", "--shape", "1,1,8,8", "--to", "safetensors,full")
    convert = ("convert", "digits.pt", *wanted, "--output")
    one, two, three = (machine(folder, share, name) for name in ("one", "two", "three"))
    folder.cli(*convert, "first", **one)
    folder.cli("cache", "push", "convert.yaml", **one)
    folder.cli(*convert, "second", **two)
    first = tree(folder.folder / "first")
    assert tree(folder.folder / "second") == first
    digest = sha256(first["safetensors/weights.safetensors"]).hexdigest()
    share.remove(f"objects/{digest[:2]}/{digest[2:]}")
    said = folder.cli(*convert, "third", exits=1, **three).stderr
    assert "run `deploy-runner run convert.yaml weights` to rebuild it" in said
    assert (folder.folder / "third" / "full").exists()
    folder.cli(*convert, "fourth", **three)
    assert tree(folder.folder / "fourth") == first
