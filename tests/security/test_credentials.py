"""A credential that isn't taken as a secret is refused, and so is the store's own file as an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy_runner.pipeline.credentials import Credentials, is_credential
from tests.conftest import Project

VALUE = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
STAGE = "a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: %s}}"


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "hf_token", "DB_PASSWORD", "OPENAI_API_KEY",
     "GITHUB_PAT", "SECRET_KEY_BASE", "DEPLOY_RUNNER_CACHE_KEY", "SIGNING_KEY", "MY_DB_PWD"],
)  # fmt: skip
def test_names_of_credentials_are_known(name: str) -> None:
    assert is_credential(name)


@pytest.mark.parametrize(
    "name",
    ["AWS_ACCESS_KEY_ID", "AWS_REGION", "HF_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "MAX_TOKENS", "EOS_TOKEN",
     "TOKENIZERS_PARALLELISM", "SORT_KEY", "PWD", "GOOGLE_APPLICATION_CREDENTIALS", "MONKEY", "PATH"],
)  # fmt: skip
def test_names_of_other_things_are_not_taken_for_credentials(name: str) -> None:
    assert not is_credential(name)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "a credential"),
        ("postgres://user:hunter2@db/x", "a credential"),
        ("-----BEGIN EC PRIVATE KEY-----", "a credential"),
        (f"key={VALUE}", "the value of AWS_SECRET_ACCESS_KEY"),
        ("pass", "the value of MINE"),
        ("passing", ""),
        ("staging", ""),
        ("http://localhost:8000/@x", ""),
        ("docker://python:3.12@sha256:0123", ""),
    ],
)
def test_values_of_credentials_are_known_by_form_and_by_the_environment(text: str, held: str) -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": VALUE, "MINE": "pass", "A_TOKEN": "stag"}
    assert Credentials(environ, ["MINE"]).held_in(text) == held


@pytest.mark.parametrize(
    ("head", "suffix", "args", "said"),
    [
        ("env: {AWS_SECRET_ACCESS_KEY: null}\n", "x", (), "AWS_SECRET_ACCESS_KEY is a credential"),
        ("env: {PLAIN: null}\n", "x", (), "the variable PLAIN contains the value of AWS_SECRET_ACCESS_KEY"),
        (f"env: {{OTHER: '{VALUE}'}}\n", "x", (), "the default of OTHER is the value of AWS_SECRET_ACCESS_KEY"),
        ("", '"${{ env.AWS_SECRET_ACCESS_KEY }}"', (), "AWS_SECRET_ACCESS_KEY is a credential"),
        ('vars: {v: "${{ env.HF_TOKEN }}"}\n', "x", (), "HF_TOKEN is a credential"),
        ("", "x", ("--set", 'stages.a.with.suffix="${{ env.HF_TOKEN }}"'), "HF_TOKEN is a credential"),
        ("", "x", ("--set", f"stages.a.with.suffix={VALUE}"), "stages.a.with.suffix contains the value of AWS_SECRET"),
        (f"vars: {{v: '{VALUE}'}}\n", "x", (), "vars.v contains the value of AWS_SECRET_ACCESS_KEY"),
    ],
)  # fmt: skip
def test_a_credential_in_the_open_is_refused_and_written_nowhere(
    project: Project, head: str, suffix: str, args: tuple[str, ...], said: str
) -> None:
    project.pipeline(STAGE % suffix, head=head)
    given = {"AWS_SECRET_ACCESS_KEY": VALUE, "PLAIN": VALUE}
    done = project.cli("run", *args, exits=2, **given)
    assert said in done.stderr
    assert "${{ secrets." in done.stderr
    assert VALUE not in done.stdout + done.stderr
    assert not any(
        VALUE.encode() in p.read_bytes() for p in project.folder.rglob(".deploy-runner/**/*") if p.is_file()
    )


def test_a_graph_compiled_before_the_credential_was_known_is_looked_at_again(project: Project) -> None:
    project.pipeline(STAGE % '"${{ env.PLAIN }}"', head="env: {PLAIN: null}\n")
    project.run(PLAIN=VALUE)
    assert project.run(PLAIN=VALUE)["hit"] == 1
    done = project.cli("run", exits=2, PLAIN=VALUE, HF_TOKEN=VALUE)
    assert "the variable PLAIN contains the value of HF_TOKEN" in done.stderr


def test_the_runners_own_key_is_no_secret_of_a_stage(project: Project) -> None:
    project.pipeline(STAGE % '"${{ secrets.DEPLOY_RUNNER_CACHE_KEY }}"')
    done = project.cli("run", exits=2, DEPLOY_RUNNER_CACHE_KEY=VALUE)
    assert "DEPLOY_RUNNER_CACHE_KEY is reserved by deploy-runner" in done.stderr


SECRET = 'odd: {uses: text.odd, with: {secret: "${{ secrets.DEPLOY_PASS }}"}}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("abc", "is shorter than 4 bytes"),
        (" ab ", "is shorter than 4 bytes"),
    ],
)
def test_a_secret_that_is_empty_or_too_short_is_refused_and_leaves_no_hit(
    project: Project, value: str, said: str
) -> None:
    project.pipeline(SECRET)
    error = project.run(exits=1, DEPLOY_PASS=value)["stages"]["odd"]["error"]
    assert f"the secret DEPLOY_PASS {said}" in error
    assert project.states(DEPLOY_PASS="a real one") == {"odd": "ran"}
    # What is up to date asks for no secret.
    assert project.states(DEPLOY_PASS=value) == {"odd": "hit"}
    assert project.states() == {"odd": "hit"}


@pytest.mark.parametrize(
    "path", [".deploy-runner/secret", "link", "folder-link/secret", ".deploy-runner", ".", "kept"]
)
def test_the_stores_own_files_are_never_inputs(project: Project, path: str) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    project.run()
    os.symlink(".deploy-runner/secret", project.folder / "link")
    os.symlink(".deploy-runner", project.folder / "folder-link")
    os.symlink(project.folder / ".deploy-runner/actions", project.folder / "kept")
    project.pipeline(f"a: {{uses: run.command, inputs: {{f: {path}}}, outputs: {{o: o}}, with: {{command: 'cp -r $INPUT_F $OUTPUT_O'}}}}")  # fmt: skip
    done = project.cli("run", exits=2)
    assert f"{path} belongs to the store and can't be an input" in done.stderr or (
        f"{path} contains the store and can't be an input" in done.stderr
    )


@pytest.mark.parametrize("home", [".", "cache/of/mine"])
def test_a_store_elsewhere_in_the_project_is_no_input_either(project: Project, home: str) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    project.run(DEPLOY_RUNNER_HOME=home)
    assert project.run(DEPLOY_RUNNER_HOME=home)["hit"] == 1
    project.pipeline(f"a: {{uses: text.upper, inputs: {{text: {home}/secret}}}}")
    done = project.cli("run", exits=2, DEPLOY_RUNNER_HOME=home)
    assert f"{home}/secret belongs to the store" in done.stderr


def test_a_link_laid_after_compiling_is_refused_too(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: late.txt}}")
    project.write("late.txt", "sound")
    project.run()
    (project.folder / "late.txt").unlink()
    os.symlink(".deploy-runner/secret", project.folder / "late.txt")
    done = project.cli("run", exits=2)
    assert "belongs to the store and can't be an input" in done.stdout + done.stderr


def test_code_below_the_store_is_refused(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    project.run()
    Path(project.folder / ".deploy-runner/code.py").write_text("def f(ctx, i, o): pass\n")
    project.pipeline("a: {uses: run.python, with: {function: .deploy-runner/code.py:f}}")
    assert "belongs to the store" in project.cli("run", exits=2).stderr
