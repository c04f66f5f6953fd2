"""Send a request to an endpoint, which answers at once or puts its answer in a bucket."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from deploy_runner.sdk import GateError, first_line

from ...package.smoke import JSON_TYPE, Invoke
from . import objects
from .waiting import waiting


def by_request(session: Any, endpoint: str, component: str | None = None) -> Invoke:
    """Return what invokes an endpoint, or a component on it, and waits for the answer."""
    client = session.client("sagemaker-runtime")
    to = {"EndpointName": endpoint} | ({"InferenceComponentName": component} if component else {})

    def once(body: bytes) -> bytes:
        given = client.invoke_endpoint(**to, Body=body, ContentType=JSON_TYPE, Accept=JSON_TYPE)
        return bytes(given["Body"].read())

    def invoke(body: bytes) -> bytes:
        try:
            return objects.again(lambda: once(body))
        except client.exceptions.ModelError as error:
            raise _refused(error) from error

    return invoke


def by_file(session: Any, endpoint: str, *, inbox: str, wait_s: float) -> Invoke:
    """Return what invokes an asynchronous endpoint: the body is put below `inbox` (`s3://…`)."""
    import hashlib

    client, s3 = session.client("sagemaker-runtime"), session.client("s3")

    def invoke(body: bytes) -> bytes:
        source = f"{inbox}/{hashlib.sha256(body).hexdigest()[:16]}.json"
        s3.put_object(**_place(source), Body=body, ContentType=JSON_TYPE)
        given = client.invoke_endpoint_async(
            EndpointName=endpoint, InputLocation=source, ContentType=JSON_TYPE, Accept=JSON_TYPE
        )
        for _ in waiting(wait_s):
            if (answer := read(s3, given["OutputLocation"])) is not None:
                return answer
            if (failure := read(s3, given.get("FailureLocation", ""))) is not None:
                said = failure[:200].decode("utf-8", "replace")
                raise GateError(f"the container failed: {said}")
        raise GateError(
            f"{endpoint} has written no response to {given['OutputLocation']} after {wait_s:.0f} s"
        )

    return invoke


def read(s3: Any, uri: str) -> bytes | None:
    """Return the object at `s3://…`, or None where there is none."""
    if not uri:
        return None
    return objects.unless_missing(
        lambda: objects.again(lambda: bytes(s3.get_object(**_place(uri))["Body"].read()))
    )


def _refused(error: Any) -> GateError:
    status = error.response.get("OriginalStatusCode", "")
    said = first_line(error.response.get("OriginalMessage") or error)
    return GateError(f"the container responded with {status}: {said}".replace(" :", ":"))


def _place(uri: str) -> dict[str, str]:
    parts = urlsplit(uri)
    return {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}
