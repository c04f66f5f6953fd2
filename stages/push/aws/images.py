"""AWS's images for SageMaker: what each wants in model.tar.gz, and when its last patch came.

Read on 2026-11-30 in aws/deep-learning-containers at e0ecedea (2026-08-21): `docs/src/data/REPOSITORY/` says
`eop` for each version, `docs/src/legacy/legacy_support.yml` for older ones, and
`docs/ray/deployment/sagemaker.md` what Ray's image starts. The repositories without dates have none there, so
nothing is said of their age.
https://github.com/aws/deep-learning-containers/tree/e0ecedea6a1c56d6b5914f9cfb2fec5c548e67e0/docs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

__all__ = ["IMAGES", "SUCCESSOR", "Image", "advice", "environment", "is_for_cpu"]

SUCCESSOR = "ray:serve-ml-sagemaker-cpu-v1"
_PYTORCH = {
    "2.6": "2026-06-30", "2.5": "2025-10-29", "2.4": "2025-07-24", "2.3": "2025-04-24", "2.2": "2025-01-30",
    "2.1": "2024-10-04", "2.0": "2024-03-15", "1.13": "2024-10-28",
}  # fmt: skip
_TENSORFLOW = {"2.19": "2026-03-11", "2.18": "2025-10-24", "2.16": "2025-03-07", "2.14": "2024-09-26"}


@dataclass(frozen=True, slots=True)
class Image:
    """A repository of images; `ends` is the day (ISO 8601) of the last patch by version, newest first."""

    starts: str
    """What it starts of a model.tar.gz."""
    ends: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What keeps it from reporting to its makers."""


IMAGES: Mapping[str, Image] = {
    "pytorch-inference": Image("code/inference.py", _PYTORCH),
    "pytorch-inference-arm64": Image("code/inference.py", {"2.6": "2026-06-30"}),
    "ray": Image("config.yaml and deployment.py", environment={"RAY_USAGE_STATS_ENABLED": "0"}),
    "huggingface-pytorch-inference": Image("code/inference.py"),
    "tensorflow-inference": Image("a SavedModel", _TENSORFLOW),
    "sagemaker-tritonserver": Image("a model repository"),
    "djl-inference": Image("serving.properties"),
}


def advice(uri: str, today: date) -> list[str]:
    """Return a sentence if this image gets no patches any more; none if the table doesn't know it."""
    name, tag = _name_and_tag(uri)
    ends = IMAGES[name].ends if name in IMAGES else {}
    patched = next((version for version, end in ends.items() if date.fromisoformat(end) >= today), None)
    for version, end in ends.items():
        if tag.startswith((f"{version}.", f"{version}-")) and date.fromisoformat(end) < today:
            instead = f"version {patched} still gets them" if patched else "no version of it gets any"
            return [
                f"the image {name}:{tag} has had no security patches since {end}, and {instead}; "
                f"a package of package.sagemaker starts in AWS's {SUCCESSOR} too"
            ]
    return []


def environment(uri: str) -> dict[str, str]:
    """Return the variables that a container of this image gets unless the user sets them."""
    name, _ = _name_and_tag(uri)
    return dict(IMAGES[name].environment) if name in IMAGES else {}


def is_for_cpu(uri: str) -> bool:
    """Say whether this is AWS's image without CUDA, as its tag says; of other images nothing is known."""
    name, tag = _name_and_tag(uri)
    return name in IMAGES and "cpu" in tag.split("-")


def _name_and_tag(uri: str) -> tuple[str, str]:
    name, _, tag = uri.rpartition("/")[2].partition("@")[0].partition(":")
    return name, tag
