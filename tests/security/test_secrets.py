"""Secrets, each told by a stage in another way: none is found in anything that is written."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import Project

LEAKS = '''
"""A stage type that tells its secret in the way that `how` says."""
import base64, json, logging, sys, urllib.parse
from deploy_runner.sdk import Context, File, Folder, GateError, Output, Stage, StageError, StageInputs, StageOutputs, StageParams


class Leak(Stage):
    """Tell a secret."""

    uses = "leak.it"

    class Params(StageParams):
        how: str
        secret: str

    class Outputs(StageOutputs):
        text: File = Output("leak.txt")
        folder: Folder | None = Output("folder")

    def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
        s, how = params.secret, params.how
        if how == "print": print("the secret is", s)
        if how == "stderr": print(s, file=sys.stderr)
        if how == "log": ctx.log(f"token={s}")
        if how == "logging": logging.getLogger().error("token %s", s)
        if how == "base64": print(base64.b64encode(s.encode()).decode())
        if how == "base64 inside": print(base64.b64encode(f"user:{s}".encode()).decode())
        if how == "url": print("https://user:" + urllib.parse.quote(s, safe="") + "@example.test/x?token=" + urllib.parse.quote_plus(s))
        if how == "header": print({"Authorization": f"Bearer {s}"})
        if how == "json": print(json.dumps({"token": s}))
        if how == "hex": print(s.encode().hex())
        if how == "two writes":
            sys.stdout.write("half: " + s[:7]); sys.stdout.flush(); sys.stdout.write(s[7:] + "\\n"); sys.stdout.flush()
        if how == "no newline": sys.stdout.write("unfinished " + s)
        if how == "progress": ctx.progress(0.5, f"with {s}")
        if how == "figure": ctx.figure("token", s)
        if how == "figure name": ctx.figure(s, 1)
        if how == "figure list": ctx.figure("tokens", [{"a": s}])
        if how == "exception": raise ValueError(f"could not log in with {s}")
        if how == "stage error": raise StageError(f"refused: {s}", fix=f"try another than {s}")
        if how == "gate": raise GateError(f"{s} is too long")
        if how == "output": outputs.text.write_text(f"token: {s}"); return
        if how == "output far in": outputs.text.write_bytes(b"." * (3 * 2**20 - 9) + s.encode()); return
        if how == "output packed":
            import gzip
            outputs.text.write_bytes(gzip.compress(b"." * 2**20 + base64.b64encode(s.encode()))); return
        if how == "file name": (outputs.text.parent / "folder").mkdir(); (outputs.text.parent / "folder" / urllib.parse.quote_plus(s)).touch()
        if how == "environment":
            import os, subprocess
            print(subprocess.run(["env"], env={"TOKEN": s}, capture_output=True, text=True).stdout)
        if how == "lines": print("-----BEGIN KEY-----", s, "-----END KEY-----", sep=chr(10))
        outputs.text.write_text("nothing")
'''

HOWS = (
    "print", "stderr", "log", "logging", "base64", "base64 inside", "url", "header", "json", "hex", "two writes",
    "no newline", "progress", "figure", "figure name", "figure list", "exception", "stage error", "gate", "output",
    "output far in", "output packed", "file name", "environment", "lines",
)  # fmt: skip


def secret_of(index: int) -> str:
    if HOWS[index] == "lines":
        return "\n".join(f"{line:02}{'AbCd' * 5}{line * 6661}" for line in range(4))
    return f"cänary/{index:02}+{'xyzw' * 3}&={index * 7919}"


def forms(value: str) -> list[bytes]:
    """Return how a secret may look: raw, URL-encoded, in JSON, base64, hexadecimal."""
    raw = value.encode()
    if "\n" in value:
        return [form for line in value.splitlines() for form in forms(line)]
    return [
        raw, urllib.parse.quote(value, safe="").encode(), urllib.parse.quote_plus(value).encode(),
        json.dumps(value)[1:-1].encode(), base64.b64encode(raw).rstrip(b"=")[:-1], base64.urlsafe_b64encode(raw).rstrip(b"=")[:-1],
        raw.hex().encode(),
    ]  # fmt: skip


def found_in(data: bytes, secrets: dict[str, str]) -> list[str]:
    return [name for name, value in secrets.items() if any(form in data for form in forms(value))]


def test_secrets_are_written_nowhere(project: Project, tmp_path: Path) -> None:
    project.write("stages/leaks.py", LEAKS)
    secrets = {f"TOKEN_{i}": secret_of(i) for i in range(len(HOWS))}
    project.pipeline(
        "\n".join(
            f'l{i}: {{uses: leak.it, with: {{how: {how}, secret: "${{{{ secrets.TOKEN_{i} }}}}"}}}}'
            for i, how in enumerate(HOWS)
        )
    )
    summary = tmp_path / "summary.md"
    given = {**secrets, "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true"}
    printed = []
    for args in (["run", "--log", "--keep-workdirs"], ["run", "--json"], ["plan"], ["plan", "--values"], ["explain", "l0"], ["show"],
                 ["show", "l0", "--log"], ["show", "l16"], ["show", "--json"], ["graph"]):  # fmt: skip
        out, err = project.start(*args, **given).communicate()
        printed += [(" ".join(args), (out + err).encode())]
    assert b"[secret TOKEN_0]" in printed[0][1]
    for where, data in printed:
        assert not found_in(data, secrets), where
    for path in [summary, *project.folder.rglob("*")]:
        if path.is_file() and "work" not in path.parts:
            assert not found_in(path.read_bytes(), secrets), path
    states = json.loads(
        next(line for line in reversed(printed[1][1].decode().splitlines()) if line.startswith("{"))
    )
    for index in (19, 20, 21, 22):
        assert f"contains the secret TOKEN_{index}" in states["stages"][f"l{index}"]["error"], HOWS[index]


LARGE = """
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams

class Large(Stage):
    \"\"\"Write a secret far into a large file.\"\"\"
    uses = "leak.large"
    class Params(StageParams):
        secret: str
        at: int
    class Outputs(StageOutputs):
        file: File = Output("large.bin")
    def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
        data = bytearray(9 << 20)
        data[params.at : params.at + len(params.secret)] = params.secret.encode()
        outputs.file.write_bytes(data)
"""


@pytest.mark.parametrize("at", [0, (4 << 20) - 5, (8 << 20) + 77])
def test_a_secret_far_into_a_large_output_is_found(project: Project, at: int) -> None:
    project.write("stages/large.py", LARGE)
    project.pipeline(f'l: {{uses: leak.large, with: {{at: {at}, secret: "${{{{ secrets.TOKEN_0 }}}}"}}}}')
    error = project.run(exits=1, TOKEN_0=secret_of(0))["stages"]["l"]["error"]
    assert "its output `file` contains the secret TOKEN_0" in error
    assert not (project.folder / ".deploy-runner/cas").exists()


def test_the_secrets_differ() -> None:
    assert len({secret_of(i) for i in range(len(HOWS))}) == len(HOWS) == 25


def test_the_credentials_of_a_live_push_are_secrets_too_and_names_of_files_are_not() -> None:
    from deploy_runner.engine.execute.live import credentials_of

    environ = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_SESSION_TOKEN": "t0ken", "HF_TOKEN": "hf_x",
        "HF_TOKEN_PATH": "/a/file", "AWS_WEB_IDENTITY_TOKEN_FILE": "/another", "AWS_REGION": "eu-central-1", "OTHER_TOKEN": "no",
        "HTTPS_PROXY": "http://user:p%40ss@proxy:3128",
    }  # fmt: skip
    assert credentials_of(environ) == {
        "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_SESSION_TOKEN": "t0ken", "HF_TOKEN": "hf_x", "HTTPS_PROXY": "p@ss",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "env"),
    [
        pytest.param(".cache/huggingface/token", {}, id="HOME"),
        pytest.param("caches/huggingface/token", {"XDG_CACHE_HOME": "{home}/caches"}, id="XDG_CACHE_HOME"),
        pytest.param("hf/token", {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "{home}/caches"}, id="HF_HOME"),
        pytest.param(
            "t o k e n", {"HF_TOKEN_PATH": "${{HOME}}/t o k e n", "HF_HOME": "~/hf"}, id="HF_TOKEN_PATH"
        ),
    ],
)
def test_the_token_of_hf_auth_login_is_found_where_the_hubs_client_has_it_and_is_a_secret(
    tmp_path: Path, place: str, env: dict[str, str]
) -> None:
    from deploy_runner.engine.execute.live import credentials_of, live_environment

    environ = {"HOME": str(tmp_path), **{name: value.format(home=tmp_path) for name, value in env.items()}}
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hf_of_a_login\n")
    shown = "import huggingface_hub.constants as c; print(c.HF_TOKEN_PATH)"
    theirs = subprocess.run(
        [sys.executable, "-c", shown], env=environ, capture_output=True, text=True, check=True
    )
    assert theirs.stdout == f"{path}\n"
    assert live_environment(environ)["HF_TOKEN_PATH"] == str(path)
    assert credentials_of(environ) == {"HF_TOKEN_PATH": "hf_of_a_login"}
    path.unlink()
    assert not credentials_of(environ)


STORED = '''
import base64, configparser, json, os
from pathlib import Path
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams

class Push(Stage):
    """Tell what the login files have."""

    uses = "own.push"
    network = True

    class Outputs(StageOutputs):
        text: File = Output("out.txt")

    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        said = json.loads(Path(os.environ["REGISTRY_AUTH_FILE"]).read_text())["auths"]
        print(json.dumps(said))
        print("password:", base64.b64decode(said["ghcr.io"]["auth"]).decode().partition(":")[2])
        keys = configparser.RawConfigParser()
        keys.read(os.environ["AWS_SHARED_CREDENTIALS_FILE"])
        ctx.figure("keys", {name: dict(keys[name]) for name in keys.sections()})
        outputs.text.write_text("nothing")
'''


def test_what_docker_login_and_profiles_of_aws_have_stored_is_written_nowhere(project: Project) -> None:
    secrets = ["dckr-p:ssword", "identity-t0ken", "registry-t0ken", "AWS+secret/key", "AWS+session+token"]
    auth = base64.b64encode(f"me:{secrets[0]}".encode()).decode()
    rows = {"ghcr.io": {"auth": auth}, "short.example.com": {"auth": base64.b64encode(b"me:t").decode()}, "odd": 3,
            "acr.example.com": {"identitytoken": secrets[1], "registrytoken": secrets[2]}}  # fmt: skip
    project.write("home/.docker/config.json", json.dumps({"auths": rows}))
    profile = f"[other]\naws_access_key_id = AKIA1\naws_secret_access_key = {secrets[3]}\n"
    project.write("home/.aws/credentials", f"{profile}aws_session_token = {secrets[4]}\n")
    project.write("stages/push.py", STORED)
    project.write("live.yaml", "target: {name: production, live: true}")
    project.pipeline("push: {uses: own.push}")
    done = project.cli("run", "--config", "live.yaml", "--json", HOME=str(project.folder / "home"))
    assert json.loads(done.stdout)["stages"]["push"]["figures"]["keys"]["other"] == {
        "aws_access_key_id": "AKIA1",
        "aws_secret_access_key": "[secret aws_secret_access_key of other]",
        "aws_session_token": "[secret aws_session_token of other]",
    }
    kept = (project.folder / ".deploy-runner").rglob("*")
    written = [done.stdout, done.stderr, *(p.read_text("latin-1") for p in kept if p.is_file())]
    assert any("password: [secret password of ghcr.io]" in text for text in written)
    assert [s for s in (*secrets, auth) if any(s in text for text in written)] == []
