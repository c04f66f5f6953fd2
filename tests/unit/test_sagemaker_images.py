"""The table of SageMaker's images says which get no patches any more, and nothing of those that it doesn't know."""

from __future__ import annotations

from datetime import date

import pytest

from deploy_runner.stages.push.aws.images import IMAGES, advice
from tests.conftest import ROOT

ECR = "763104351884.dkr.ecr.eu-central-1.amazonaws.com"


@pytest.mark.parametrize(
    ("uri", "today", "said"),
    [
        (f"{ECR}/pytorch-inference:2.6.0-cpu-py312-ubuntu22.04-sagemaker", "2026-07-01",
         "no security patches since 2026-06-30, and no version of it gets any"),
        (f"{ECR}/pytorch-inference:2.6.0-cpu-py312", "2026-06-30", ""),
        (f"{ECR}.cn/pytorch-inference:2.5-gpu@sha256:0123", "2026-11-30", "since 2025-10-29, and no version of it"),
        (f"{ECR}/pytorch-inference:2.5-gpu", "2026-01-01", "since 2025-10-29, and version 2.6 still gets them"),
        (f"{ECR}/pytorch-inference:1.13.1-cpu-py39", "2026-11-30", "since 2024-10-28"),
        (f"{ECR}/pytorch-inference:2.61-cpu", "2026-11-30", ""),
        (f"{ECR}/pytorch-inference", "2026-11-30", ""),
        (f"{ECR}/pytorch-training:2.5-gpu", "2026-11-30", ""),
        (f"{ECR}/ray:serve-ml-sagemaker-cpu-v1", "2026-11-30", ""),
        ("localhost:5000/pytorch-inference:2.6.0-cpu-py312", "2026-11-30", "since 2026-06-30"),
        ("image:1", "2026-11-30", ""),
        ("", "2026-11-30", ""),
    ],
)  # fmt: skip
def test_an_image_past_its_last_patch_is_one_sentence(uri: str, today: str, said: str) -> None:
    found = advice(uri, date.fromisoformat(today))
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_the_docs_name_every_image_and_its_last_day() -> None:
    text = (ROOT / "docs/dry-run-to-live.md").read_text()
    for name, image in IMAGES.items():
        last = next(iter(image.ends.values()), "not stated")
        newest = next(iter(image.ends), "every")
        assert f"| `{name}` | {image.starts} | {newest}: {last} |" in text
