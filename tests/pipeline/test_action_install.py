"""What the action installs, by the real pip: from local wheels, a private index on the loopback, its own checkout."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.actions import ActionsCache, Job, run_action
from tests.conftest import ROOT, Project, module_of

BASE = Path(sys.base_prefix) / "bin"
COMMAND = "import sys\ndef main(): print('deploy-runner of a wheel', sys.version_info[:2])\n"


def wheel(
    folder: Path, name: str, version: str, *metadata: str, source: str = "", script: bool = False
) -> Path:
    """Build a wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": "\n".join(
            ("Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", f"Version: {version}", *metadata, "")
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name.replace('_', '-')} = {name}:main\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def pip() -> None:
    if subprocess.run(
        [BASE / "python3", "-m", "pip", "--version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine's Python has no pip")


@pytest.fixture
def job(pip: None, tmp_path: Path) -> Job:
    """A job on a machine whose Python is no environment, as `actions/setup-python` leaves it."""
    checkout = tmp_path / "repo with blanks"
    ours = ("Provides-Extra: onnx", "Requires-Dist: tiny>=1; extra == 'onnx'", "Provides-Extra: remote",
            "Requires-Dist: tiny-store; extra == 'remote'")  # fmt: skip
    wheel(checkout / "dist", "deploy_runner", "0.9", *ours, source=COMMAND, script=True)
    wheel(checkout / "dist", "tiny", "1.5")
    wheel(checkout / "dist", "tiny_store", "2")
    (checkout / "app").mkdir()
    env = {
        "PATH": f"{BASE}:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    return Job(checkout, ActionsCache(tmp_path / "cache"), env=env, install=True)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address, without a scheme, of an index of packages that wants the password `s3cret`."""
    wheel(tmp_path / "index/private-model", "private_model", "3")
    wanted = "Basic " + base64.b64encode(b"ci:s3cret").decode()

    class Private(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") == wanted:
                return super().do_GET()
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return None

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Private, directory=str(tmp_path / "index"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def installed(job: Job) -> set[str]:
    """Return what is in the job's own environment."""
    (folder,) = (job.checkout.parent / f"{job.checkout.name}-temp/deploy-runner/venv").glob(
        "lib/python*/site-packages"
    )
    return {path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info")}


@pytest.mark.slow
def test_a_job_has_an_environment_of_its_own_with_the_users_packages(job: Job, index: str) -> None:
    """From a requirements file with Windows line ends, a private index and a folder with a blank in its path."""
    (job.checkout / "app/requirements.txt").write_bytes(
        f"--index-url http://ci:${{TOKEN}}@{index}/\r\n--find-links ../dist\r\nprivate-model>=2\r\n".encode()
    )
    job.env = {**job.env, "TOKEN": "s3cret", "PIP_NO_INDEX": "0"}
    given = {
        "working_directory": "app",
        "requirements": "requirements.txt",
        "package": "dist/deploy_runner-0.9-py3-none-any.whl",
    }
    done = run_action(job, extras="onnx", **given)
    assert installed(job) == {"deploy_runner-0.9", "tiny-1.5", "private_model-3"}, done.log
    assert "s3cret" not in done.log
    # Later steps find the command, and keep their own Python.
    (place,) = map(Path, done.path)
    assert [p.name for p in place.iterdir()] == ["deploy-runner"]
    said = subprocess.run([place / "deploy-runner"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("deploy-runner of a wheel")
    # That wheel has no `run`, and nothing to say.
    assert not done.success
    assert "the run ended with exit code 0 without a result" in done.outputs["result"]
    # A second call in the job finds the environment; a shared cache needs its extra.
    again = run_action(job, extras="", remote="file:///x", **given)
    assert installed(job) == {"deploy_runner-0.9", "tiny-1.5", "private_model-3", "tiny_store-2"}, again.log
    assert again.path == []


@pytest.mark.slow
def test_advice_to_install_an_extra_takes_no_strangers_package_of_the_same_name(job: Job) -> None:
    """`pip install 'deploy-runner[x]'`, as messages say, keeps what is installed, whatever an index has."""
    given = {"package": "dist/deploy_runner-0.9-py3-none-any.whl", "extras": ""}
    run_action(job, **given)
    wheel(job.checkout / "dist", "deploy_runner", "99", source="raise SystemExit('a stranger')")
    python = job.checkout.parent / f"{job.checkout.name}-temp/deploy-runner/venv/bin/python"
    pip = [
        str(BASE / "python3"),
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-index",
        "-f",
        "dist",
    ]
    subprocess.run([*pip, "deploy-runner[onnx]"], cwd=job.checkout, check=True)
    assert installed(job) == {"deploy_runner-0.9", "tiny-1.5"}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"requirements": "requirements.txt"}, "the input requirements names no file of the working directory: requirements.txt"),
        ({"package": "./dist/none.whl"}, "the input package names no file or folder of the workspace: ./dist/none.whl"),
        ({"package": "--index-url=x"}, "the input package is '--index-url=x'; set it to a path, a URL, or a name with its version"),
        ({"extras": "onnx] @ x"}, "the input extras contains 'onnx]', which is not the name of an extra"),
        ({"package": "deploy-runner==7"}, "pip could not install deploy-runner[all]==7; the log has its messages"),
    ],
    ids=["requirements", "path", "option", "extras", "version"],
)  # fmt: skip
def test_what_cannot_be_installed_is_annotated(job: Job, inputs: dict[str, str], said: str) -> None:
    done = run_action(job, **inputs)
    assert not done.success
    assert f"::error::deploy-runner: {said}" in done.log
    assert said in done.summary
    assert f'"error": "{said}"' in done.outputs["result"]


def test_an_old_python_is_named_with_the_input_that_changes_it(job: Job, tmp_path: Path) -> None:
    old = next((p for v in range(8, 11) if (p := shutil.which(f"python3.{v}")) and runs(p)), None)
    if old is None:
        pytest.skip("this machine has no old Python")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(f'#!/bin/sh\nexec {old} "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    job.env = {**job.env, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    done = run_action(job)
    assert not done.success
    assert re.search(
        r"::error::deploy-runner: deploy-runner needs Python 3\.11 or newer, and this job has 3\.\d+\.\d+: "
        r"set the input python-version, e\.g\. '3\.12'\n", done.log)  # fmt: skip


def runs(python: str) -> bool:
    return not subprocess.run([python, "--version"], capture_output=True, check=False).returncode


def test_a_package_is_the_checkout_a_path_a_url_or_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    requirement = module_of(ROOT / "action.py").requirement
    (tmp_path / "deploy-runner").mkdir()
    for package, url, version in [
        ("", ROOT.as_uri(), ""),
        (".", tmp_path.as_uri(), ""),
        ("./deploy-runner", f"{tmp_path.as_uri()}/deploy-runner", ""),
        ("git+https://example.com/x.git@v1", "git+https://example.com/x.git@v1", ""),
        ("deploy-runner", None, ""),
        ("deploy-runner==0.1.0", None, "==0.1.0"),
        ("deploy-runner >= 0.1, <1", None, "<1,>=0.1"),
    ]:
        for extras in ([], ["onnx", "hub"]):
            found = Requirement(requirement(package, extras))
            assert (found.name, found.url, str(found.specifier)) == ("deploy-runner", url, version)
            assert found.extras == set(extras)


@pytest.mark.slow
def test_the_action_installs_its_own_commit(chain: Project, tmp_path: Path, job: Job) -> None:
    """From its checkout, as GitHub unpacks it; pip takes what else is needed from the machine's index."""
    checkout = tmp_path / "_actions/deploy-runner"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    shutil.copytree(chain.folder, job.checkout, dirs_exist_ok=True)
    env = {"PATH": job.env["PATH"], "GITHUB_ACTION_PATH": str(checkout)}
    job.env = env
    done = run_action(job, extras="")
    assert done.success, done.log
    assert '"ran": 3' in done.outputs["result"]
    (folder,) = (tmp_path / "repo with blanks-temp/deploy-runner/venv").glob("lib/python*/site-packages")
    assert (folder / "deploy_runner/cli.py").read_bytes() == (ROOT / "deploy_runner/cli.py").read_bytes()
    # The line of the README, with the repository beside the user's own project.
    (line,) = re.findall(r"^\$ pip (install .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    (checkout.parent / "own").mkdir()
    pip = [str(BASE / "python3"), "-m", "pip", *shlex.split(line), "--dry-run", "--no-deps"]
    said = subprocess.run(pip, cwd=checkout.parent / "own", capture_output=True, text=True, check=True)
    assert re.search(r"Would install deploy-runner-\d", said.stdout)


@pytest.mark.slow
def test_an_environment_that_the_job_has_activated_is_used(job: Job, tmp_path: Path) -> None:
    subprocess.run([BASE / "python3", "-m", "venv", tmp_path / "mine"], check=True)
    job.env = {**job.env, "PATH": f"{tmp_path}/mine/bin:/usr/bin:/bin", "PIP_FIND_LINKS": "dist"}
    run_action(job, package="dist/deploy_runner-0.9-py3-none-any.whl", extras="onnx")
    assert (tmp_path / "mine/bin/deploy-runner").exists()
    assert not (tmp_path / "repo with blanks-temp/deploy-runner").exists()
