"""What an endpoint's own tags say: whose it is, what it served before, and what has passed the smoke test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .packed_model import TAG

_MOST = 3
"""How many earlier configs are remembered: AWS takes 256 characters in a tag's value, and 63 in a name.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Tag.html"""
_DIGEST, _PREVIOUS, _TESTED = f"{TAG}:digest", f"{TAG}:previous", f"{TAG}:tested"


class EndpointTags:
    """The tags of one endpoint, read and written by boto3's SageMaker client."""

    def __init__(self, client: Any, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint

    def read(self) -> dict[str, str]:
        """Return the endpoint's tags."""
        return tags_of(self._client, self._arn())

    def write(self, tags: Mapping[str, str]) -> None:
        """Set some of the endpoint's tags."""
        rows = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._client.add_tags(ResourceArn=self._arn(), Tags=rows)

    def own(self) -> bool:
        """Say whether a push has made, or taken over, the endpoint."""
        return _DIGEST in self.read()

    def earlier(self) -> list[str]:
        """Return the configs that were served before and not refused, the newest first."""
        return self.read().get(_PREVIOUS, "").split()

    def remember(self, configs: Sequence[str]) -> None:
        """Note what was served before: a rollback goes back to the first that isn't served."""
        if configs:
            self.write({_PREVIOUS: " ".join(configs[:_MOST])})
        else:
            self._client.delete_tags(ResourceArn=self._arn(), TagKeys=[_PREVIOUS])

    def note(self, tags: Mapping[str, str], *, tested: str = "") -> None:
        """Note what is served, and the config that has passed the smoke test, unless that is known."""
        wanted = {**tags, _TESTED: tested} if tested else dict(tags)
        known = self.read()
        if any(known.get(key) != wanted[key] for key in (_DIGEST, _TESTED) if key in wanted):
            self.write(wanted)

    def tested(self, config: str) -> bool:
        """Say whether a config has passed the smoke test at this endpoint."""
        return self.read().get(_TESTED) == config

    def forget_test(self) -> None:
        """Note that what is served doesn't pass the smoke test."""
        self._client.delete_tags(ResourceArn=self._arn(), TagKeys=[_TESTED])

    def _arn(self) -> str:
        return str(self._client.describe_endpoint(EndpointName=self._endpoint)["EndpointArn"])


def tags_of(client: Any, arn: str) -> dict[str, str]:
    """Return the tags of a resource."""
    pages = client.get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
