"""`push.transform`: a batch transform job of a package over files, and its answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Finding,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
)

from ..package.smoke import JSON_TYPE
from .aws import objects
from .aws.packed_model import ModelParams, PackedModel, named, or_none, package_upload, put_package
from .backoff import ASKED, ATTEMPTS
from .transcript import Transcript

_JOBS = 5
"""How many jobs of one name may have failed: AWS keeps the names of jobs for ever."""
_POLL_S = (0.1, 15.0)
_USUAL_S = 600.0
_WAIT_S = 24 * 3600.0


class PushTransform(Stage):
    """Run a batch transform job over the files of a folder, and download the responses.

    Its name holds the digests of the model and of the data: an existing job is waited for, not
    run twice. One that has failed is run again under the next name.
    """

    uses = "push.transform"
    packages = ("boto3", "sagemaker-core", "moto")
    extra = "sagemaker"
    network = True
    services = ("aws",)
    converges = True

    class Params(ModelParams):
        """The job; what is left out comes from the target's `aws:`."""

        job: str = Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9])*$", max_length=40, description="its name")
        content_type: str = Field(JSON_TYPE, description="the content type of each file")
        accept: str = Field(JSON_TYPE, description="the content type of the responses")
        instance_type: str = Field("ml.m5.large", description="the kind of instance")
        instance_count: int = Field(1, ge=1, description="how many instances")

    class Inputs(StageInputs):
        """The package and the data."""

        package: File = Field(description="model.tar.gz of package.sagemaker")
        data: Folder = Field(description="files, each of which is one request")

    class Outputs(StageOutputs):
        """The answers."""

        answers: Folder = Output("answers", "NAME.out for each file")
        transcript: File = Output("transcript.json", "every object, name and call")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Objects first, then the model, then the job; wait, and download."""
        transcript = Transcript()
        with objects.plainly():
            job = _Job(ctx, params, inputs, transcript)
            name = job.converge()
            job.download(name, outputs.answers)
        ctx.converged = not transcript.changed
        ctx.figure("calls", transcript.calls)
        ctx.figure("job", name)
        ctx.figure("files", len(job.uploads))
        transcript.write(outputs.transcript, job=name, model=job.model.name)

    def status(self, ctx: Context, params: Params, inputs: Inputs) -> list[Finding]:
        """Say how the job is."""
        with objects.plainly():
            name, found = _Job(ctx, params, inputs, Transcript(), attempts=ASKED).current()
            state = "missing" if found is None else str(found["TransformJobStatus"])
            return [Finding(f"transform job {name}", "Completed", state)]


class _Job:
    """The job over the uploads, which are the data's files."""

    def __init__(
        self,
        ctx: Context,
        params: PushTransform.Params,
        inputs: PushTransform.Inputs,
        transcript: Transcript,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._ctx, self._params, self._transcript = ctx, params, transcript
        self._session = objects.boto_session(ctx, attempts=attempts)
        self._client = self._session.client("sagemaker")
        self._package = package_upload(ctx, self._session, params, inputs.package, owner=params.job)
        self.model = PackedModel(
            ctx, self._session, transcript, params, owner=params.job,
            url=self._package.uri, digest=self._package.digest,
        )  # fmt: skip
        digests = {path.name: objects.file_digest(path) for path in _files(inputs.data)}
        place = named(f"{params.prefix}/{params.job}/data", digests)
        self.uploads = [
            objects.Upload(
                self._package.s3, self._package.bucket, f"{place}/{name}", inputs.data / name, digest,
                content_type=params.content_type,
            )
            for name, digest in digests.items()
        ]  # fmt: skip
        self._source = f"s3://{self._package.bucket}/{place}/"
        instances = (params.instance_type, params.instance_count)
        types = (params.content_type, params.accept)
        self._name = named(params.job, self.model.name, digests, types, instances)

    def converge(self) -> str:
        """Make what is missing, run the job, wait for it; return its name."""
        put_package(self._ctx, self._session, self._package, self._transcript)
        for upload in self.uploads:
            objects.put_once(upload, self._transcript)
        self.model.make()
        name, found = self.current()
        if found is None:
            self._start(name)
        self._wait(name)
        return name

    def current(self) -> tuple[str, dict[str, Any] | None]:
        """Return the first job of the name that has not failed, or the first name that is free."""
        for index in range(_JOBS):
            name = f"{self._name}-{index}" if index else self._name
            found = self._describe(name)
            if found is None or found["TransformJobStatus"] not in ("Failed", "Stopped"):
                return name, found
        raise StageError(f"the job {self._name} has failed {_JOBS} times", fix="see its CloudWatch logs")

    def _describe(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = or_none(
            lambda: self._client.describe_transform_job(TransformJobName=name)
        )
        return found

    def _start(self, name: str) -> None:
        params = self._params
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self._source}}
        objects.unless(lambda: self._client.create_transform_job(
            TransformJobName=name, ModelName=self.model.name,
            TransformInput={"DataSource": source, "ContentType": params.content_type},
            TransformOutput={"S3OutputPath": self._target(name), "Accept": params.accept},
            TransformResources={
                "InstanceType": params.instance_type, "InstanceCount": params.instance_count
            },
            Tags=self.model.aws_tags,
        ), "must be unique")  # fmt: skip
        self._transcript.add("sagemaker:CreateTransformJob", name=name)

    def _target(self, name: str) -> str:
        return f"s3://{self._package.bucket}/{self._params.prefix}/{self._params.job}/answers/{name}"

    def _wait(self, name: str) -> None:
        begun, pause = time.monotonic(), _POLL_S[0]
        while (found := self._describe(name)) is not None:
            took = time.monotonic() - begun
            if found["TransformJobStatus"] == "Completed":
                return
            if found["TransformJobStatus"] in ("Failed", "Stopped"):
                raise GateError(f"the job {name} has failed: {found.get('FailureReason', 'it was stopped')}")
            if took > _WAIT_S:
                raise StageError(
                    f"the job {name} is still running after {took:.0f} s", fix="run again to continue"
                )
            self._ctx.progress(min(0.99, took / _USUAL_S), f"{name}: {found['TransformJobStatus']}")
            time.sleep(pause)
            pause = min(_POLL_S[1], pause * 1.5)
        raise StageError(f"the job {name} no longer exists")

    def download(self, name: str, folder: Path) -> None:
        """Bring back the answer to each file. Raises GateError where one is missing."""
        s3, bucket = self._package.s3, self._package.bucket
        prefix = self._target(name).removeprefix(f"s3://{bucket}/")
        folder.mkdir(parents=True)
        for upload in self.uploads:
            part = upload.path.name
            place = folder / f"{part}.out"
            try:
                s3.download_file(bucket, f"{prefix}/{part}.out", str(place))
            except s3.exceptions.ClientError as error:
                if objects.http_status(error) != 404:
                    raise
                raise GateError(f"the job {name} has no response for {part}") from None


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir())
    if not found:
        raise StageError("the folder `data` contains no file")
    for path in found:
        if path.is_dir():
            raise StageError(f"`data` contains the folder {path.name}", fix="put the files into one folder")
    return found
