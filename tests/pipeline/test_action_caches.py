"""The action's caches: what a job has built is a hit in the next one, in the cache of Actions or in a shared one.

The workflows are the examples', run as GitHub runs them (tests/actions.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy_runner.store.signatures import Signatures
from tests.actions import ActionsCache, Done, Job, run_action, run_job
from tests.conftest import ROOT, Project

EXAMPLES = ROOT / "examples/github-workflow"
KEY = "9d1f6a7be3c05248f7a91d3e5b60c8a4"
PULL_REQUEST = {"event": "pull_request", "ref": "refs/pull/17/merge"}
PRODUCTION = """
    target:
      name: production
      live: true
      aws: {region: us-east-1, bucket: models, role_arn: "arn:aws:iam::123456789012:role/r", image_uri: "image:1"}
    """


@pytest.fixture
def cache(tmp_path: Path) -> ActionsCache:
    return ActionsCache(tmp_path / "actions-cache")


class Repository:
    """A repository whose jobs run on machines of their own."""

    def __init__(self, project: Project, cache: ActionsCache) -> None:
        self.project = project
        self._cache = cache
        self._machines = 0
        project.write("configs/production.yaml", PRODUCTION)

    def job(self, **given: Any) -> Job:
        """Return a job on a fresh machine, with the repository checked out."""
        self._machines += 1
        checkout = self.project.folder.parent / f"machine-{self._machines}"
        ignored = shutil.ignore_patterns(".deploy-runner", "__pycache__")
        shutil.copytree(self.project.folder, checkout, ignore=ignored)
        return Job(checkout, self._cache, **given)


@pytest.fixture
def repository(chain: Project, cache: ActionsCache) -> Repository:
    return Repository(chain, cache)


def states(done: Done) -> dict[str, str]:
    """Return stage → state, by the action's output."""
    result = json.loads(done.outputs["result"])
    return {id_: stage["state"] for id_, stage in result["stages"].items()}


def built(done: Done) -> int:
    return sum(state == "ran" for state in states(done).values())


# The cache of Actions ------------------------------------------------------------------------


def test_production_uses_what_the_dry_run_has_built(repository: Repository, cache: ActionsCache) -> None:
    secrets = {"DEPLOY_RUNNER_CACHE_KEY": KEY, "HF_TOKEN": "t"}
    dry_run = run_job(EXAMPLES / "deploy.yml", "dry-run", repository.job(secrets=secrets))
    assert set(states(dry_run).values()) == {"ran"}
    production = run_job(EXAMPLES / "deploy.yml", "production", repository.job(secrets=secrets))
    assert production.success
    assert set(states(production).values()) == {"hit"}
    assert len(cache.keys) == 1
    assert cache.rejected == []


@pytest.mark.parametrize("workflow", sorted(EXAMPLES.glob("*.yml")), ids=lambda p: p.stem)
def test_both_jobs_of_an_example_trust_each_other(workflow: Path) -> None:
    """One key in one job alone would make every hit a miss, unless public keys are trusted."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    remote = all("remote" in step["with"] for job in jobs for step in job["steps"][-1:] if "with" in step)
    keys = {"DEPLOY_RUNNER_CACHE_KEY" in str(job) for job in jobs}
    assert remote == (workflow.stem == "shared-cache")
    assert remote or len(keys) == 1


def test_a_run_that_built_nothing_saves_nothing(repository: Repository, cache: ActionsCache) -> None:
    run_action(repository.job())
    for run_id in ("2", "3"):
        done = run_action(repository.job(run_id=run_id))
        assert set(states(done).values()) == {"hit"}
    assert len(cache.keys) == 1
    assert cache.rejected == []


def test_what_is_built_later_is_saved_under_another_name(repository: Repository, cache: ActionsCache) -> None:
    run_action(repository.job())
    changed = run_action(repository.job(), set="stages.b.with.times=3")
    assert states(changed) == {"a": "hit", "b": "ran", "c": "ran"}
    assert len(set(cache.keys)) == 2
    assert cache.rejected == []
    again = run_action(repository.job(), set="stages.b.with.times=3")
    assert set(states(again).values()) == {"hit"}
    assert set(states(run_action(repository.job())).values()) == {"hit"}


def test_a_failed_run_keeps_what_it_built(repository: Repository, cache: ActionsCache) -> None:
    project = repository.project
    project.pipeline(
        "a: {uses: text.upper, inputs: {text: in.txt}}\nbad: {uses: text.odd, with: {how: gate}}"
    )
    failed = run_action(repository.job())
    assert not failed.success
    assert states(failed) == {"a": "ran", "bad": "failed"}
    assert len(cache.keys) == 1
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}\nbad: {uses: text.odd}")
    fixed = run_action(repository.job())
    assert states(fixed) == {"a": "hit", "bad": "ran"}


def test_a_cancelled_run_keeps_what_it_built(repository: Repository, cache: ActionsCache) -> None:
    """GitHub interrupts the shell alone, and kills what is left ten seconds later."""
    repository.project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}}
        long: {uses: text.odd, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {how: sleep}}
        """
    )
    job = repository.job()
    job.cancel_when = job.checkout / ".deploy-runner/actions"
    cancelled = run_action(job)
    assert not cancelled.success
    assert states(cancelled) == {"a": "ran", "long": "interrupted"}
    assert len(cache.keys) == 1
    again = run_action(repository.job(), stages="a")
    assert states(again) == {"a": "hit"}


def test_a_run_that_never_began_saves_nothing(repository: Repository, cache: ActionsCache) -> None:
    run_action(repository.job())
    repository.project.write("pipeline.yaml", "version: 1\nname: x\nstages: {a: {use: text.upper}}\n")
    done = run_action(repository.job())
    assert not done.success
    assert len(cache.keys) == 1


@pytest.mark.slow
def test_what_is_saved_was_collected(repository: Repository, cache: ActionsCache, tmp_path: Path) -> None:
    job = repository.job()
    for times in range(1, 11):
        Project(job.checkout).run("b", "--set", f"stages.b.with.times={times}")
    run_action(job, stages="b", set="stages.b.with.times=11")
    (saved,) = (tmp_path / "actions-cache").iterdir()
    assert len(list((saved / "runs").iterdir())) == 10
    assert len(list((saved / "actions").rglob("*.json"))) == 11  # Ten of b, and a.


def test_a_pull_request_reads_the_cache_and_saves_none(repository: Repository, cache: ActionsCache) -> None:
    run_action(repository.job())
    done = run_job(EXAMPLES / "deploy.yml", "dry-run", repository.job(**PULL_REQUEST))
    assert set(states(done).values()) == {"hit"}
    changed = run_action(repository.job(**PULL_REQUEST), set="stages.b.with.times=3")
    assert states(changed) == {"a": "hit", "b": "ran", "c": "ran"}
    assert len(cache.keys) == 1
    skipped = run_job(EXAMPLES / "deploy.yml", "production", repository.job(**PULL_REQUEST))
    assert skipped.outputs == {"skipped": "true"}


@pytest.mark.slow
def test_after_a_merge_production_is_all_hits(repository: Repository, cache: ActionsCache) -> None:
    """A pull request of a fork, which has no secret, reads what main has; its merge builds the rest once."""
    deploy = EXAMPLES / "deploy.yml"
    main = {"secrets": {"HF_TOKEN": "t"}}
    assert run_job(deploy, "dry-run", repository.job(**main)).success
    repository.project.write("in.txt", "changed")
    fork = repository.job(**PULL_REQUEST)
    assert set(states(run_job(deploy, "dry-run", fork)).values()) == {"ran"}
    assert len(cache.keys) == 1
    merged = run_job(deploy, "dry-run", repository.job(run_id="2", **main))
    assert set(states(merged).values()) == {"ran"}
    production = run_job(deploy, "production", repository.job(run_id="2", **main))
    assert set(states(production).values()) == {"hit"}
    assert set(states(run_job(deploy, "dry-run", repository.job(**PULL_REQUEST))).values()) == {"hit"}
    assert len(cache.keys) == 2
    assert cache.rejected == []


def test_no_run_that_anybody_can_trigger_saves_what_main_restores(
    repository: Repository, cache: ActionsCache
) -> None:
    """Such runs have the default branch's name, so that GitHub's own isolation doesn't cover them."""
    assert run_action(repository.job(event="issue_comment"), stages="a").success
    assert run_action(repository.job(event="pull_request_target"), stages="a").success
    assert cache.keys == []


@pytest.mark.slow
def test_each_branch_has_its_own_entries_and_reads_those_of_main(
    repository: Repository, cache: ActionsCache
) -> None:
    feature = {"ref": "refs/heads/feature"}
    assert states(run_action(repository.job(**feature), stages="a")) == {"a": "ran"}
    assert states(run_action(repository.job(), stages="a")) == {"a": "ran"}
    assert states(run_action(repository.job(ref="refs/heads/other"), stages="a")) == {"a": "hit"}
    assert len(cache.keys) == 2


@pytest.mark.slow
def test_two_pipelines_of_one_repository_have_entries_of_their_own(
    repository: Repository, cache: ActionsCache
) -> None:
    for name in ("one", "two"):
        shutil.copytree(repository.project.folder / "stages", repository.project.folder / name / "stages")
        repository.project.write(f"{name}/in.txt", name)
        shutil.copy(repository.project.folder / "pipeline.yaml", repository.project.folder / name)
    both = repository.job()
    for name in ("one", "two"):
        assert set(states(run_action(both, working_directory=name)).values()) == {"ran"}
    for name in ("two", "./one/"):
        again = run_action(repository.job(run_id="2"), working_directory=name)
        assert set(states(again).values()) == {"hit"}
    assert len(cache.keys) == 2


@pytest.mark.slow
def test_a_store_of_the_machine_is_neither_restored_nor_saved(
    repository: Repository, cache: ActionsCache, tmp_path: Path
) -> None:
    """A self-hosted runner whose jobs share `DEPLOY_RUNNER_HOME`."""
    run_action(repository.job(), stages="a")
    home = {"DEPLOY_RUNNER_HOME": str(tmp_path / "home")}
    assert states(run_action(repository.job(env=home), stages="a")) == {"a": "ran"}
    job = repository.job(env=home)
    assert states(run_action(job, stages="a")) == {"a": "hit"}
    assert len(cache.keys) == 1
    assert not (job.checkout / ".deploy-runner").exists()


@pytest.mark.slow
def test_the_legs_of_a_matrix_end_with_all_hits(repository: Repository, cache: ActionsCache) -> None:
    """They run at the same time and can't see each other; what each adds is restored by the next run."""
    for run, expected in enumerate(["ran ran", "ran hit", "hit hit"]):
        jobs = [repository.job(run_id=str(run), matrix={"times": times}) for times in ("2", "3")]
        # Both have restored before either saves: the second's checkout has no entry of the first.
        known = len(cache.keys)
        found = []
        for job in jobs:
            cache.visible = known
            done = run_action(job, stages="b", set=f"stages.b.with.times={job.matrix['times']}")
            found.append(states(done)["b"])
        cache.visible = None
        assert " ".join(found) == expected
    assert cache.rejected == []


# A shared cache ------------------------------------------------------------------------------


@pytest.fixture
def remote(repository: Repository, tmp_path: Path) -> str:
    """The address of a shared cache whose records the pipeline trusts."""
    (tmp_path / "share").mkdir()
    public = Signatures((), {"DEPLOY_RUNNER_CACHE_KEY": KEY}).public_key
    pipeline = repository.project.folder / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text() + f"cache: {{public_keys: ['{public}']}}\n")
    return f"file://{tmp_path}/share"


def shared_example(tmp_path: Path, remote: str) -> Path:
    """Return the example with this address of a cache."""
    text = (EXAMPLES / "shared-cache.yml").read_text()
    assert text.count("s3://your-cache/deploy-runner") == 2
    (tmp_path / "deploy.yml").write_text(text.replace("s3://your-cache/deploy-runner", remote))
    return tmp_path / "deploy.yml"


def test_production_and_pull_requests_use_a_shared_cache(
    repository: Repository, cache: ActionsCache, remote: str, tmp_path: Path
) -> None:
    workflow = shared_example(tmp_path, remote)
    secrets = {"DEPLOY_RUNNER_CACHE_KEY": KEY}
    assert set(states(run_job(workflow, "dry-run", repository.job(secrets=secrets))).values()) == {"ran"}
    production = run_job(workflow, "production", repository.job(secrets=secrets))
    assert set(states(production).values()) == {"hit"}
    before = sorted(tmp_path.joinpath("share").rglob("*"))
    repository.project.write("in.txt", "changed by a pull request")
    pull_request = run_job(workflow, "dry-run", repository.job(secrets=secrets, **PULL_REQUEST))
    assert set(states(pull_request).values()) == {"ran"}
    assert sorted(tmp_path.joinpath("share").rglob("*")) == before
    repository.project.write("in.txt", "hello")
    branch = run_job(workflow, "dry-run", repository.job(**PULL_REQUEST))
    assert set(states(branch).values()) == {"hit"}
    assert "any more" not in branch.log + production.log
    assert cache.keys == []


def test_a_failed_run_keeps_what_it_built_in_the_shared_cache(
    repository: Repository, cache: ActionsCache, remote: str
) -> None:
    stages = "a: {uses: text.upper, inputs: {text: in.txt}}\nbad: {uses: text.odd, with: {how: gate}}"
    head = (repository.project.folder / "pipeline.yaml").read_text().splitlines()[-1] + "\n"
    repository.project.pipeline(stages, head=head)
    writer = repository.job(env={"DEPLOY_RUNNER_CACHE_KEY": KEY})
    assert not run_action(writer, remote=remote, push="true").success
    assert states(run_action(repository.job(), remote=remote)) == {"a": "hit", "bad": "failed"}
    assert cache.keys == []


def test_a_shared_cache_in_the_jobs_environment_replaces_the_cache_of_actions(
    repository: Repository, cache: ActionsCache, remote: str
) -> None:
    run_action(repository.job())
    assert len(cache.keys) == 1
    done = run_action(repository.job(env={"DEPLOY_RUNNER_REMOTE": remote}))
    assert built(done) == 3
    assert len(cache.keys) == 1
