"""A pull request whose code is hostile changes nothing of the protected store, and learns nothing of its key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.hostile import KERNELS, USER, Attacked, Kernel, attacked

PULL_REQUEST = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/17/merge"}
PROTECTED = """
    a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
    b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {times: 2}}
    """

# What a stage tries as a command: `$S` is the protected store, `$P` the project, `$O` its output.
ATTACKS = {
    "reads its key": "cat $S/secret > $O",
    "links to its key": "ln -s $S/secret $O",
    "links hard to its key": "ln $S/secret $O",
    "puts it in the place of its outputs": "cd $(dirname $O)/..; rm -rf outputs; ln -s $S outputs",
    "puts its objects in the place of its outputs": "cd $(dirname $O)/..; mv outputs o; ln -s $S/cas outputs",
    "puts it in the place of its workdir": "cd $(dirname $O)/../..; mv work w; ln -s $S work; rm -rf w",
    "reaches it through other processes": (
        "for p in /proc/[0-9]*; do cat $p/root$S/secret $p/cwd/.deploy-runner/secret $p/environ >> $O;"
        " echo x > $p/root$S/counter; rm -rf $p/root$S; done"
    ),
    "opens its modes": "chmod -R 777 $S; chown -R $(id -u) $S; setfacl -R -m o::rwx $S",
    "replaces its objects": 'find $S/cas -type f | while read f; do chmod 666 "$f"; echo evil > "$f"; done',
    "writes records": 'find $S/actions -type f | while read f; do cp "$f" $S/actions/00; echo {} > "$f"; done',
    "writes new records": "mkdir -p $S/actions/ab; echo {} > $S/actions/ab/cd.json; cp $INPUT_A $S/cas/x",
    "keeps its locks": "for f in $S/gc.lock $S/counter.lock $S/locks/*; do (exec 9>$f; flock 9; sleep 60) & done",
    "leaves stale locks": "touch $S/locks/x.lock; mkdir -p $S/tmp/x; ln -s / $S/tmp/root",
    "puts links in the place of its folders": "for d in cas actions tmp locks; do rm -rf $S/$d; ln -s /tmp $S/$d; done",
    "takes it away": "mv $S $S.gone; rm -rf $S; ln -s /tmp $S",
    "mounts over it": "mount -t tmpfs none $S; unshare -rm mount --bind /tmp $S; mount -o remount,rw /",
    "waits until it has ended": "(trap '' HUP TERM; sleep 2; echo evil > $S/counter; rm -rf $S/cas) & setsid sh -c 'sleep 2; rm -rf $S' &",
    "is a push to the branch": (
        "export GITHUB_EVENT_NAME=push GITHUB_REF=refs/heads/main DEPLOY_RUNNER_HOME=$S DEPLOY_RUNNER_PROTECTED_HOME=;"
        " cd $P && $PYTHON -P -m deploy_runner run && $PYTHON -P -m deploy_runner cache gc --keep-runs 0"
    ),
    "writes into its input": "chmod 777 $INPUT_A $(dirname $INPUT_A); echo evil > $INPUT_A; cat $INPUT_A > $O",
}  # fmt: skip


def content(home: Path) -> dict[str, tuple[str, int, int]]:
    """Return every file of the protected namespace: digest, mode, and the time of its last change."""
    return {
        path.relative_to(home).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode, path.stat().st_mtime_ns
        )
        for path in home.rglob("*")
        if path.is_file() and "pull-requests" not in path.parts
    }  # fmt: skip


def hostile(attacks: dict[str, str], store: Path, project: Path) -> str:
    """Return the stages that try these attacks, and end well where nothing comes of them."""
    rows = [textwrap.dedent(PROTECTED)]
    for i, attack in enumerate(attacks.values()):
        variables = {"S": store, "P": project, "PYTHON": sys.executable, "O": "$OUTPUT_O"}
        given = "; ".join(f"{name}={value}" for name, value in variables.items())
        script = f"{given}; set +eu; exec 2>&1; {attack}\n[ -e $O ] || echo nothing > $O"
        inputs = '{a: "${{ stages.a.outputs.text }}"}'
        rows.append(
            f"x{i}: {{uses: run.command, timeout: 20s, inputs: {inputs}, outputs: {{o: secret}}, "
            f"with: {{command: {json.dumps(script)}}}}}\n"
        )
    return "".join(rows)


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {name: row["state"] for name, row in json.loads(done.stdout.splitlines()[-1])["stages"].items()}


def assert_unknown(secret: bytes, *folders: Path) -> None:
    """Assert that no file of these folders has the key in it."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if not path.is_symlink() and secret in path.read_bytes()]


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """A project that the protected branch has run, on the kernel that the test names."""
    with attacked(request.param) as made:
        made.project.write("in.txt", "hello")
        made.pipeline(PROTECTED)
        assert made.run()["ran"] == 2
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("target", KERNELS.values(), ids=KERNELS, indirect=True)
def test_no_stage_of_a_pull_request_changes_or_reads_the_protected_store(target: Attacked) -> None:
    project = target.project.folder
    store = project / ".deploy-runner"
    secret, before = (store / "secret").read_bytes(), content(store)
    target.pipeline(hostile(ATTACKS, store, project))
    found = states(target.cli("run", "--keep-workdirs", "--json", **PULL_REQUEST))
    assert (found.pop("a"), found.pop("b")) == ("hit", "hit")
    assert set(found.values()) == {"ran", "failed"}
    target.cli("get", "a", "--to", str(project / "taken"), **PULL_REQUEST)
    (project / "taken").write_text("evil")
    assert content(store) == before
    assert_unknown(secret, store / "pull-requests/17")
    target.pipeline(PROTECTED)
    assert states(target.cli("run", "--json")) == {"a": "hit", "b": "hit"}
    assert target.cli("cache", "verify").returncode == 0


# What the module of a stage type tries, which the runner itself imports: it runs as the user whose run it is.
MODULE = """
import ctypes, os, shutil, subprocess
from pathlib import Path
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
STORE, OWN = Path({store!r}), Path({own!r})
def attempt(do):
    try: return do()
    except (OSError, subprocess.SubprocessError): return None
files = [path for path in STORE.rglob("*") if path.is_file()]
for path in (*files, *STORE.rglob("*"), STORE):
    attempt(lambda: path.chmod(0o777)); attempt(lambda: os.utime(path)); attempt(lambda: path.unlink())
    attempt(lambda: os.truncate(path, 0)); attempt(lambda: path.rename(path.with_name("x")))
    attempt(lambda: (path / "new").write_text("x")); attempt(lambda: path.write_text("evil"))
    attempt(lambda: os.setxattr(path, "user.x", b"x")); attempt(lambda: os.chown(path, os.getuid(), -1))
attempt(lambda: shutil.rmtree(STORE))
attempt(lambda: ctypes.CDLL(None).mount(None, os.fsencode(STORE), None, 32, None))
for path in files:
    found = attempt(path.read_bytes)
    if found is not None:
        copy = OWN / path.relative_to(STORE)
        attempt(lambda: copy.parent.mkdir(parents=True, exist_ok=True)); attempt(lambda: copy.write_bytes(found))
    attempt(lambda: os.link(path, OWN / "linked")); attempt(lambda: (OWN / "linked").write_text("evil"))
os.environ |= {{"GITHUB_EVENT_NAME": "push", "GITHUB_REF": "refs/heads/main", "DEPLOY_RUNNER_HOME": str(STORE)}}
class Evil(Stage):
    \"\"\"Do nothing more.\"\"\"
    uses = "text.evil"
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        outputs.text.write_text("x")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["by another user", "on a read-only disk"])
def test_code_that_the_runner_of_a_pull_request_imports_changes_no_store_that_its_user_cannot_write(
    kept: str,
) -> None:
    with attacked(Kernel(0)) as target:
        folder = target.project.folder.parent
        store, own = folder / "protected", folder / "own"
        target.project.write("in.txt", "hello")
        target.pipeline(PROTECTED)
        target.cli("run", DEPLOY_RUNNER_HOME=str(store))
        secret, before = (store / "secret").read_bytes(), content(store)
        own.mkdir()
        os.chown(own, USER, USER)
        seen = store
        if kept == "on a read-only disk":
            seen = folder / "mounted"
            seen.mkdir()
            subprocess.run(["chown", "-R", str(USER), str(store)], check=True)
            subprocess.run(["mount", "--bind", str(store), str(seen)], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        try:
            target.kernel = Kernel(USER)
            target.project.write("stages/evil.py", MODULE.format(store=str(seen), own=str(own)))
            target.pipeline(textwrap.dedent(PROTECTED) + "e: {uses: text.evil}\n")
            pull = {**PULL_REQUEST, "DEPLOY_RUNNER_HOME": str(own), "DEPLOY_RUNNER_PROTECTED_HOME": str(seen)}
            done = target.cli("run", "--json", **pull)
            assert states(done) == {"a": "hit", "b": "hit", "e": "ran"}, done.stdout + done.stderr
        finally:
            if seen != store:
                subprocess.run(["umount", str(seen)], check=True)
                subprocess.run(["chown", "-R", "0", str(store)], check=True)
        assert content(store) == before
        if seen == store:
            assert_unknown(secret, own, target.project.folder)
        (target.project.folder / "stages/evil.py").unlink()
        target.kernel = Kernel(0)
        for name in ("actions", "cas"):  # What the pull request made, put where the branch looks.
            shutil.copytree(own / "pull-requests/17" / name, store / name, dirs_exist_ok=True)
        target.pipeline(textwrap.dedent(PROTECTED) + "e: {uses: text.odd}\n")
        done = target.cli("run", "--json", DEPLOY_RUNNER_HOME=str(store))
        assert states(done) == {"a": "hit", "b": "hit", "e": "ran"}
        # The only record that is not its own goes.
        assert (
            target.cli("cache", "verify", DEPLOY_RUNNER_HOME=str(store)).stdout.count("action record ") == 1
        )


@pytest.mark.slow
def test_a_stage_of_one_pull_request_sees_nothing_of_anothers_store_wherever_that_is() -> None:
    with attacked(Kernel(USER), within="/opt") as target:
        folder = target.project.folder.parent
        own, protected = folder / "own", folder / "protected"
        for place in (own, protected):
            place.mkdir()
            os.chown(place, USER, USER)
        pull = {"DEPLOY_RUNNER_HOME": str(own), "DEPLOY_RUNNER_PROTECTED_HOME": str(protected)}
        target.project.write("in.txt", "hello")
        target.pipeline(PROTECTED)
        target.cli("run", **PULL_REQUEST | pull | {"GITHUB_REF": "refs/pull/18/merge"})
        secret = own / "pull-requests/18/secret"
        assert secret.stat().st_size == 32
        command = f"cat {secret} > $OUTPUT_O || echo nothing > $OUTPUT_O"
        target.pipeline(f"x: {{uses: run.command, outputs: {{o: o}}, with: {{command: {command!r}}}}}")
        assert states(target.cli("run", "--json", **PULL_REQUEST | pull)) == {"x": "ran"}
        target.cli("get", "x.o", "--to", str(target.project.folder / "got"), **PULL_REQUEST | pull)
        assert (target.project.folder / "got").read_text() == "nothing\n"
