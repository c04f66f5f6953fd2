"""`push.transform`: a batch transform job of a package over files, and its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Field,
    File,
    Finding,
    Folder,
    GateError,
    Output,
    StageError,
    StageInputs,
    sha256_file,
)

from ..package.smoke import JSON_TYPE
from .aws import objects
from .aws.client import Aws, AwsPush
from .aws.gpu import require_gpu
from .aws.packed_model import ModelParams, PackedModel, named, or_none, package_upload, put_package
from .aws.waiting import show, waiting

_JOBS = 5
"""How many jobs of one name may have failed: AWS keeps the names of jobs for ever."""
_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg",
    ".txt": "text/plain", ".csv": "text/csv", ".npy": "application/x-npy", ".npz": "application/x-npz",
}  # fmt: skip
_WAIT_S = 24 * 3600.0


class PushTransform(AwsPush):
    """Run a batch transform job over the files of a folder, and download the responses.

    The job's name contains the digests of the model and of the data: if the job exists, the stage
    waits for it and doesn't run it twice. A job that has failed is run again under the next name.
    """

    uses = "push.transform"

    class Params(ModelParams):
        """The job; what is left out comes from the target's `aws:`."""

        job: str = Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9])*$", max_length=40, description="its name")
        content_type: str | None = Field(
            None,
            description="the content type of each file (default: by their suffix, else application/json)",
        )
        accept: str = Field(JSON_TYPE, description="the content type of the responses")
        instance_type: str = Field("ml.m5.large", description="the kind of instance")
        instance_count: int = Field(1, ge=1, description="how many instances")

    class Inputs(StageInputs):
        """The package and the data."""

        package: File = Field(description="model.tar.gz of package.sagemaker")
        data: Folder = Field(description="files, each of which is one request")

    class Outputs(AwsPush.Outputs):
        """The answers."""

        answers: Folder = Output("answers", "NAME.out for each file")

    def converge(self, aws: Aws, params: Params, inputs: Inputs, outputs: Outputs) -> dict[str, Any]:
        """Objects first, then the model, then the job; wait, and download."""
        job = _Job(aws, params, inputs)
        name = job.converge()
        job.download(name, outputs.answers)
        aws.ctx.figure("job", name)
        aws.ctx.figure("files", len(job.uploads))
        return {"job": name, "model": job.model.name}

    def findings(self, aws: Aws, params: Params, inputs: Inputs) -> list[Finding]:
        """Say how the job is."""
        name, found = _Job(aws, params, inputs).current()
        state = "missing" if found is None else str(found["TransformJobStatus"])
        return [Finding(f"transform job {name}", "Completed", state)]


class _Job:
    """The job over the uploads, which are the data's files."""

    def __init__(self, aws: Aws, params: PushTransform.Params, inputs: PushTransform.Inputs) -> None:
        self._aws, self._params = aws, params
        self._client = aws.session.client("sagemaker")
        self._package = package_upload(aws, params, inputs.package, owner=params.job)
        self.model = PackedModel(
            aws, params, owner=params.job, url=self._package.uri, digest=self._package.digest
        )
        require_gpu(inputs.package, self.model.image, params.instance_type)
        files = _files(inputs.data)
        self._content_type = params.content_type or _type_of(files)
        digests = {path.name: sha256_file(path) for path in files}
        place = named(f"{params.prefix}/{params.job}/data", digests)
        self.uploads = [
            objects.Upload(
                self._package.s3, self._package.bucket, f"{place}/{name}", inputs.data / name, digest,
                content_type=self._content_type,
            )
            for name, digest in digests.items()
        ]  # fmt: skip
        self._source = f"s3://{self._package.bucket}/{place}/"
        instances = (params.instance_type, params.instance_count)
        types = (self._content_type, params.accept)
        self._name = named(params.job, self.model.name, digests, types, instances)

    def converge(self) -> str:
        """Make what is missing, run the job, wait for it; return its name."""
        put_package(self._aws, self._package)
        for upload in self.uploads:
            objects.put_once(upload, self._aws.transcript)
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
            TransformInput={"DataSource": source, "ContentType": self._content_type},
            TransformOutput={"S3OutputPath": self._target(name), "Accept": params.accept},
            TransformResources={
                "InstanceType": params.instance_type, "InstanceCount": params.instance_count
            },
            Tags=self.model.aws_tags,
        ), "must be unique")  # fmt: skip
        self._aws.transcript.add("sagemaker:CreateTransformJob", name=name)

    def _target(self, name: str) -> str:
        return f"s3://{self._package.bucket}/{self._params.prefix}/{self._params.job}/answers/{name}"

    def _wait(self, name: str) -> None:
        for took in waiting(_WAIT_S):
            found = self._describe(name)
            if found is None:
                raise StageError(f"the job {name} no longer exists")
            if found["TransformJobStatus"] == "Completed":
                return
            if found["TransformJobStatus"] in ("Failed", "Stopped"):
                raise GateError(f"the job {name} has failed: {found.get('FailureReason', 'it was stopped')}")
            show(self._aws.ctx, name, found["TransformJobStatus"], took)
        raise StageError(
            f"the job {name} is still running after {_WAIT_S:.0f} s", fix="run again to continue"
        )

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


def _type_of(files: list[Path]) -> str:
    """Return the content type of raw files, which a job has one of. Raises StageError."""
    types = {_TYPES.get(path.suffix.lower(), JSON_TYPE) for path in files}
    if len(types) > 1:
        raise StageError(f"a job has files of one content type, `data` has {', '.join(sorted(types))}",
                         fix="make a job of each, or set `content_type`")  # fmt: skip
    return types.pop()
