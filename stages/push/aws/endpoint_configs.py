"""The endpoint configs that pushes to one endpoint have made, and what they serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy_runner.sdk import StageError

from .endpoint_tags import tags_of
from .packed_model import TAG, name_part, or_none


class EndpointConfigs:
    """The configs of one endpoint, read by boto3's SageMaker client."""

    def __init__(self, client: Any, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint

    def describe(self, name: str) -> dict[str, Any]:
        """Return a config as AWS describes it."""
        return dict(self._client.describe_endpoint_config(EndpointConfigName=name))

    def model_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config's first model, as AWS describes it; nothing where it names none."""
        name = config["ProductionVariants"][0].get("ModelName")
        return dict(self._client.describe_model(ModelName=name)) if name else {}

    def tags(self, name: str) -> dict[str, str]:
        """Return a config's tags; none where it is gone."""
        found = or_none(lambda: self.describe(name))
        return tags_of(self._client, found["EndpointConfigArn"]) if found else {}

    def instance_type(self, name: str) -> str | None:
        """Return the type of a config's instances; None for a serverless one."""
        found: str | None = self.describe(name)["ProductionVariants"][0].get("InstanceType")
        return found

    def find(self, to: str, before: str) -> str:
        """Return the newest config, but `before`, whose package's digest begins with `to`."""
        known: dict[str, None] = {}
        own = name_part(self._endpoint)
        pages = self._client.get_paginator("list_endpoint_configs").paginate(
            NameContains=f"{own}-", SortBy="CreationTime", SortOrder="Descending"
        )
        for row in (row for page in pages for row in page["EndpointConfigs"]):
            name = str(row["EndpointConfigName"])
            if name.rpartition("-")[0] != own:
                continue  # Another endpoint's, whose name contains this one's.
            digest = tags_of(self._client, row["EndpointConfigArn"]).get(f"{TAG}:digest", "")
            if digest.startswith(to) and name != before:
                return name
            known[digest[:12]] = None
        shown = ", ".join(digest for digest in known if digest) or "none"
        raise StageError(
            f"no package {to} was deployed to {self._endpoint}", fix=f"deployed packages: {shown}"
        )
