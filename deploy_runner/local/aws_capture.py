"""What an endpoint is asked and answers, kept in S3 as its config says.

In AWS's own layout, one file for each request:
https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .aws_fleets import store_object

__all__ = ["Exchange", "capture", "is_sampled"]


class Exchange(NamedTuple):
    """A request to a variant, and its response."""

    variant: str
    body: bytes
    content_type: str
    answer: bytes
    answer_type: str


def is_sampled(count: int, percent: float) -> bool:
    """Say whether the request of this number, from 0, is of the share: evenly, without chance."""
    return int((count + 1) * percent / 100) > int(count * percent / 100)


def capture(account: str, endpoint: str, config: Mapping[str, Any], exchange: Exchange) -> None:
    """Put a request and its response where the DataCaptureConfig says."""
    now, event = datetime.now(UTC), str(uuid.uuid4())
    modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
    data: dict[str, Any] = {}
    if modes & {"Input", "InputAndOutput"}:
        data["endpointInput"] = _part("INPUT", exchange.body, exchange.content_type)
    if modes & {"Output", "InputAndOutput"}:
        data["endpointOutput"] = _part("OUTPUT", exchange.answer, exchange.answer_type)
    meta = {"eventId": event, "inferenceTime": now.isoformat(timespec="seconds")}
    line = json.dumps({"captureData": data, "eventMetadata": meta, "eventVersion": "0"})
    folder = f"{config['DestinationS3Uri'].rstrip('/')}/{endpoint}/{exchange.variant}/{now:%Y/%m/%d/%H}"
    store_object(account, f"{folder}/{now:%M-%S}-{event}.jsonl", line.encode() + b"\n")


def _part(mode: str, data: bytes, content_type: str) -> dict[str, str]:
    """Return one side in base64, as AWS keeps content types that the config doesn't name."""
    coded = base64.b64encode(data).decode()
    return {"observedContentType": content_type, "mode": mode, "data": coded, "encoding": "BASE64"}
