"""push.mlflow and a real server of MLflow, with every fault at every request, and with others who push beside.

MLflow's client is in this process, from an environment with the extra `mlflow`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import ConflictError, StageError
from deploy_runner.testing import run_stage
from tests import mlflow_server
from tests.bundles import stage
from tests.faults.proxy import Fault, FaultProxy, Kind, Moment, Request
from tests.overlay import overlay, packages_of
from tests.serve import models

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]  # MLflow warns when it is imported.

KINDS: tuple[Kind, ...] = (
    500, 429, "reset", "partial", "commit_then_reset", "duplicate", "truncated", "slow", "stall", "lie",
)  # fmt: skip
PLAIN = (("Content-Type", "text/html"),)
ALIAS, CREATE = "/registered-models/alias", "/model-versions/create"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = mlflow_server.interpreter(tmp_path_factory.mktemp("mlflow") / "venv")
    with mlflow_server.running(python, tmp_path_factory.mktemp("server") / "mlflow") as running:
        yield running


@pytest.fixture(autouse=True)
def client(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    python = overlay(tmp_path_factory.getbasetemp() / "overlays", "mlflow")
    monkeypatch.syspath_prepend(str(packages_of(python.parent.parent)))
    settings = {"HTTP_REQUEST_TIMEOUT": "3", "HTTP_REQUEST_MAX_RETRIES": "3", "TRACKING_URI": "",
                "ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # fmt: skip
    for name, value in settings.items():  # What the push sets is undone by this, too.
        monkeypatch.setenv(f"MLFLOW_{name}", value)


class Registry:
    """The server, and the models that are pushed to it."""

    def __init__(self, url: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self.url, self._folder, self._count = url, folder, itertools.count()
        self.models = [
            models.two_outputs(folder / "one"),
            models.tokens(folder / "two"),
            models.scorer(folder / "three"),
        ]
        self.client = MlflowClient(tracking_uri=url, registry_uri=url)

    def push(self, url: str, name: str, model: int = 0) -> None:
        run_stage(
            stage("push.mlflow"), self._folder / str(next(self._count)), inputs={"model": self.models[model]},
            params={"name": name}, target={"mlflow": {"tracking_uri": url}},
        )  # fmt: skip

    def through(self, name: str, faults: Sequence[Fault]) -> list[Request]:
        with FaultProxy(self.url, faults) as proxy:
            self.push(proxy.url, name)
        return proxy.requests

    def state(self, name: str) -> dict[str, Any]:
        rows = list(self.client.search_model_versions(f"name='{name}'"))
        (place,) = self.client.search_experiments(filter_string=f"name = '{name}'")
        return {
            "versions": [(row.status, row.tags["deploy_runner.digest"]) for row in rows],
            "files": [
                [(f.path, f.file_size) for f in self.client.list_artifacts(r.run_id, "model")] for r in rows
            ],
            "champion": [row.version == self.champion(name) for row in rows],
            "runs": [row.info.status for row in self.client.search_runs([place.experiment_id])],
        }

    def champion(self, name: str) -> Any:
        return self.client.get_model_version_by_alias(name, "champion").version


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Registry:
    return Registry(url, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_with_a_fault_at_every_request_ends_as_a_clean_one(registry: Registry, kind: Kind) -> None:
    requests = registry.through(f"clean-{kind}", [])
    clean = registry.state(f"clean-{kind}")
    assert (len(clean["versions"]), clean["champion"], clean["runs"]) == (1, [True], ["FINISHED"])
    more: dict[str, Any] = {"headers": (("Retry-After", "1"),)} if kind == 429 else {}
    if kind == "lie":
        more = {"headers": PLAIN, "alter": lambda body: b"<html>welcome</html>"}
    for nth in range(1, len(requests) + 1):
        found = registry.through(f"{kind}-{nth}", [Fault(kind, nth=nth, delay_s=0.2, **more)])
        assert registry.state(f"{kind}-{nth}") == clean, (kind, found[nth - 1])


@pytest.mark.parametrize(
    ("place", "when"), [(CREATE, "answered"), (ALIAS, "answered")], ids=["before", "after"]
)
def test_an_alias_that_somebody_else_moves_meanwhile_is_a_conflict(
    registry: Registry, place: str, when: Moment
) -> None:
    name = f"moved{place.replace('/', '-')}"
    for model in (0, 1):
        registry.push(registry.url, name, model)
    assert int(registry.champion(name)) == 2

    def move(moment: Moment, request: Request) -> None:
        if moment == when and request.method == "POST" and place in request.path:
            registry.client.set_registered_model_alias(name, "champion", "1")

    with (
        FaultProxy(registry.url, observe=move) as proxy,
        pytest.raises(ConflictError, match="the alias champion of .* was moved to version 1 by another push"),
    ):
        registry.push(proxy.url, name, 2)
    assert int(registry.champion(name)) == 1
    registry.push(registry.url, name, 2)
    assert int(registry.champion(name)) == 3


def test_a_server_that_stays_away_or_is_another_is_one_sentence(registry: Registry) -> None:
    with FaultProxy(registry.url) as proxy:
        gone = proxy.url
    with pytest.raises(StageError, match="MLflow at http://127.0.0.1:.* says: .*Max retries exceeded"):
        registry.push(gone, "away")
    portal = [Fault("lie", times=1000, headers=PLAIN, alter=lambda body: b"<html>welcome</html>")]
    with pytest.raises(StageError, match="MLflow at .* says: .*<html>welcome</html>"):
        registry.through("portal", portal)
