"""What AWS takes as a bucket, a prefix, a role, an image, a variable: judged before anything is run.

The patterns of SageMaker are those of botocore 1.44.5's service model, as read on 2026-11-30, those of
buckets are https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html.
"""

from __future__ import annotations

import re
from typing import Annotated

from deploy_runner.sdk import judged

__all__ = [
    "Bucket", "Image", "Prefix", "Role", "Variable", "bucket", "image", "image_digest", "image_region",
    "role",
]  # fmt: skip

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_RESERVED = ("xn--", "sthree-", "amzn-s3-demo-")
_ROLE = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_ECR = re.compile(r"\d{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com|on\.aws)")
_BY_DIGEST = re.compile(r"(?:[^@\s/]+/)*[^@\s/:]+@sha256:([0-9a-f]{64})")
"""The form REPOSITORY@DIGEST; AWS takes a tag or a digest, not both:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html"""
_VARIABLE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,1023}")
_MOST = 1024
"""The length of a variable's value, of an S3 key, and of the address of a model's data."""


def bucket(name: str) -> str:
    """Return a bucket's name. Raises ValueError for one that S3 refuses."""
    if not _BUCKET.fullmatch(name) or ".." in name or _ADDRESS.fullmatch(name) or name.startswith(_RESERVED):
        hint = ", without s3:// and prefix" if "/" in name else ""
        raise ValueError(
            f"{name[:120]!r} is not a valid name of an S3 bucket: it has 3 to 63 small letters, digits, "
            f"hyphens and single periods{hint}"
        )
    return name


def prefix(text: str) -> str:
    """Return the prefix of keys. Raises ValueError for one that leaves a part of the keys empty."""
    if not text or "" in text.split("/"):
        raise ValueError(
            f"{text!r} is not a prefix of keys: it neither begins nor ends with `/`, nor has `//`"
        )
    return text


def role(arn: str) -> str:
    """Return a role's ARN. Raises ValueError for what isn't one."""
    if not _ROLE.fullmatch(arn):
        raise ValueError(f"{arn[:120]!r} is not the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME")
    return arn


def image(uri: str) -> str:
    """Return an image's name. Raises ValueError for what is longer than AWS takes, or has spaces."""
    if not uri or len(uri) > 255 or re.search(r"\s", uri):
        raise ValueError(f"{uri[:120]!r} is not the name of an image: up to 255 characters without spaces")
    return uri


def image_region(uri: str) -> str:
    """Return the region of an image in Amazon's registry; nothing for one of another."""
    found = _ECR.match(uri)
    return found.group(1) if found else ""


def image_digest(uri: str) -> str:
    """Return the SHA-256 of an image that is named by it; nothing for one that is named by a tag."""
    found = _BY_DIGEST.fullmatch(uri)
    return found.group(1) if found else ""


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"{name[:120]!r} is not the name of a variable: letters, digits and `_`, no digit first"
        )
    return name


def _value(text: str) -> str:
    if len(text) > _MOST:
        raise ValueError(f"a variable has at most {_MOST} characters, not {len(text)}")
    return text


Bucket = Annotated[str, judged(bucket)]
Prefix = Annotated[str, judged(prefix)]
Role = Annotated[str, judged(role)]
Image = Annotated[str, judged(image)]
Variable = Annotated[str, judged(_variable)]
Value = Annotated[str, judged(_value)]
