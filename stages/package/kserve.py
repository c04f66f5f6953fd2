"""`package.kserve`: the InferenceService by which KServe serves a checked model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
    sha256_file,
)

_NAME = r"^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$"
"""KServe's rule, and 63 characters with its `-predictor`:
https://github.com/kserve/kserve/blob/master/pkg/apis/serving/v1beta1/inference_service_validation.go"""
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?$"
_SCHEMES = ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "hf")
"""SupportedStorageURIPrefixList:
https://github.com/kserve/kserve/blob/master/pkg/controller/v1beta1/inferenceservice/utils/utils.go"""


class PackageKserve(Stage):
    """Write an InferenceService of KServe, for a Triton repository that was pushed or a container's image.

    With `pushed`, the transcript of a push, the manifest names the release by its digest, and every
    file that was pushed must be in the repository. Both kinds speak the Open Inference Protocol,
    version 2.
    """

    uses = "package.kserve"

    class Params(StageParams):
        """The service."""

        name: str = Field(pattern=_NAME, description="the InferenceService's name")
        namespace: str | None = Field(
            None,
            pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
            description="the namespace (default: kubectl's)",
        )
        image: str | None = Field(
            None, pattern=r"^[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$",
            description="the image that was built of `context`, best by its digest",
        )  # fmt: skip
        storage_uri: str | None = Field(
            None,
            description="the repository's address, e.g. s3://bucket/models/digits (default: by `pushed`)",
        )
        service_account: str | None = Field(None, description="the service account that may read it")
        min_replicas: int = Field(1, ge=0, description="the fewest replicas; 0 needs Knative")
        max_replicas: int | None = Field(None, ge=1, description="the most replicas")
        cpu: str | None = Field(None, pattern=_QUANTITY, description="processors of a replica, e.g. 500m")
        memory: str | None = Field(None, pattern=_QUANTITY, description="memory of a replica, e.g. 2Gi")

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.max_replicas is not None and self.max_replicas < self.min_replicas:
                raise ValueError(
                    f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}"
                )
            return self

        def check_inputs(self, given: Collection[str]) -> None:
            """Raise StageError unless it is a repository that is served, or the image of a context."""
            if ("repository" in given) == ("context" in given):
                raise StageError("one of `repository` and `context` is needed", fix="set either of them")
            if "context" in given:
                if self.image is None or self.storage_uri is not None:
                    raise StageError("`context` needs image, and no storage_uri",
                                     fix="set image: REGISTRY/NAME@sha256:…")  # fmt: skip
            elif self.image is not None:
                raise StageError("image needs `context`, the output of package.container")
            elif "pushed" in given and self.storage_uri is not None:
                raise StageError(
                    "storage_uri and `pushed` both say where the repository lies", fix="leave one out"
                )
            elif "pushed" not in given and self.storage_uri is None:
                raise StageError("nothing says where the repository lies",
                                 fix="set `pushed`, the transcript of push.s3, or storage_uri")  # fmt: skip

    class Inputs(StageInputs):
        """What is served."""

        repository: Folder | None = Field(None, description="the output of package.triton")
        pushed: File | None = Field(None, description="the transcript of the push.s3 that pushed it")
        context: Folder | None = Field(None, description="the output of package.container, for `image`")

    class Outputs(StageOutputs):
        """The manifest."""

        manifest: File = Output("inferenceservice.yaml", "for kubectl apply -f")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Look at what is served, and describe it."""
        served = _container(params, inputs.context) if inputs.context else _model(params, inputs)
        predictor: dict[str, Any] = {"minReplicas": params.min_replicas}
        if params.max_replicas is not None:
            predictor["maxReplicas"] = params.max_replicas
        if params.service_account is not None:
            predictor["serviceAccountName"] = params.service_account
        metadata = {"name": params.name} | ({"namespace": params.namespace} if params.namespace else {})
        manifest = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": metadata,
            "spec": {"predictor": predictor | served},
        }
        outputs.manifest.write_text(yaml.safe_dump(manifest, sort_keys=False), "utf-8")


def _model(params: PackageKserve.Params, inputs: PackageKserve.Inputs) -> dict[str, Any]:
    """Return the predictor's `model`: KServe starts Triton with what lies at an address."""
    assert inputs.repository is not None
    configs = sorted(inputs.repository.glob("*/config.pbtxt"))
    if not configs:
        raise StageError(
            "`repository` has no NAME/config.pbtxt", fix="use the output `repository` of package.triton"
        )
    uri = _pushed(inputs.pushed, inputs.repository) if inputs.pushed else str(params.storage_uri)
    if not re.fullmatch(rf"({'|'.join(_SCHEMES)})://[^\s/]\S*", uri):
        raise StageError(f"storage_uri {uri!r} is no address that KServe downloads from",
                         fix=f"use one of {', '.join(f'{s}://' for s in _SCHEMES)}")  # fmt: skip
    model = {"modelFormat": {"name": "triton", "version": "2"}, "protocolVersion": "v2", "storageUri": uri}
    return {"model": model | _resources(params)}


def _pushed(transcript: Path, repository: Path) -> str:
    """Return where a push has put the repository. Raises GateError where it pushed something else."""
    try:
        said = json.loads(transcript.read_text("utf-8"))
        uri, files = str(said["uri"]), dict(said["files"])
    except (ValueError, KeyError, TypeError):
        raise StageError("`pushed` is no transcript of push.s3", fix="use its output `transcript`") from None
    ours = {p.relative_to(repository).as_posix(): p for p in repository.rglob("*") if p.is_file()}
    for name in sorted({*ours, *files}):
        if name not in files or name not in ours or sha256_file(ours[name]) != files[name]:
            raise GateError(f"what was pushed to {uri} is not this repository: {name} differs",
                            fix="push the output `repository` of the same package.triton")  # fmt: skip
    return uri


def _container(params: PackageKserve.Params, context: Path) -> dict[str, Any]:
    """Return the predictor's `containers`: our own server, with the port and user of its Dockerfile."""
    try:
        text = (context / "Dockerfile").read_text("utf-8")
        port = int(re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)[0])
    except (OSError, LookupError):
        raise StageError("`context` has no Dockerfile with EXPOSE",
                         fix="use the output `context` of package.container") from None  # fmt: skip
    user = re.search(r"^USER ([1-9]\d*)", text, re.MULTILINE)
    container = {
        "name": "kserve-container",
        "image": params.image,
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": port}},
        "securityContext": {
            **({"runAsNonRoot": True, "runAsUser": int(user.group(1))} if user else {}),
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    return {"containers": [container | _resources(params)]}


def _resources(params: PackageKserve.Params) -> dict[str, Any]:
    given = {name: value for name, value in (("cpu", params.cpu), ("memory", params.memory)) if value}
    return {"resources": {"requests": given, "limits": given}} if given else {}
