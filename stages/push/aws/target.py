"""The settings of a push that its target has, under `aws:`: which are missing, and which AWS would refuse."""

from __future__ import annotations

import configparser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import names

_RULES: Mapping[str, Callable[[str], str]] = {
    "bucket": names.bucket, "role_arn": names.role, "image_uri": names.image
}  # fmt: skip
_DRY_RUN = {
    "region": "us-east-1", "bucket": "dry-run-models", "create_bucket": True,
    "role_arn": "arn:aws:iam::123456789012:role/sagemaker", "image_uri": "inference:latest",
}  # fmt: skip
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""boto3 reads the second alone; AWS's other SDKs and its command line read the first."""


def settings_of(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the target's `aws:`, with the defaults of a dry run."""
    found = target.get("aws")
    given = dict(found) if isinstance(found, Mapping) else {}
    return _DRY_RUN | given if target.get("live") is False else given


def region_of(target: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the region that the target or the environment names; nothing where neither does."""
    named = (settings_of(target).get("region"), *map(environ.get, _REGIONS))
    return next((str(region) for region in named if region), "")


def check(
    needs: Sequence[str],
    params: Mapping[str, Any],
    target: Mapping[str, Any],
    environ: Mapping[str, str],
) -> dict[str, str]:
    """Return what is wrong with the settings that a push needs, as `Stage.check_target` does."""
    aws = settings_of(target)
    found: dict[str, str] = {}
    region = region_of(target, environ) or _configured_region(environ)
    if not region:
        found["aws.region"] = ""
    for name in needs:
        if params.get(name):
            continue
        if not aws.get(name):
            found[f"aws.{name}"] = ""
            continue
        try:
            _RULES[name](str(aws[name]))
        except ValueError as error:
            found[f"aws.{name}"] = str(error)
    image = str(params.get("image_uri") or aws.get("image_uri") or "")
    place = names.image_region(image) if "image_uri" in needs else ""
    if region and place not in ("", region):
        found.setdefault("aws.image_uri", f"the image lies in {place}, and the region is {region}: "
                                          f"SageMaker takes images of its own region")  # fmt: skip
    return found


def _configured_region(environ: Mapping[str, str]) -> str:
    """Return the region of the profile in the user's files; what can't be read is left to boto3."""
    profile = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    home = Path(environ.get("HOME", "/nonexistent")) / ".aws"
    files = {
        environ.get("AWS_CONFIG_FILE") or str(home / "config"): (
            "default" if profile == "default" else f"profile {profile}"
        ),
        environ.get("AWS_SHARED_CREDENTIALS_FILE") or str(home / "credentials"): profile,
    }
    for file, section in files.items():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(Path(file).expanduser(), "utf-8")
        except (configparser.Error, UnicodeDecodeError):
            return "?"
        if parser.has_option(section, "region"):
            return parser.get(section, "region")
    return ""
