"""Download a folder or file of a remote: python -m deploy_runner.stages.push.download ADDRESS TARGET.

`deploy-runner verify` runs it in a process of its own, and checks what has arrived. The path of what
was downloaded is printed; what went wrong is one line of standard error.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from deploy_runner.sdk import StageError, first_line

_EXTRAS = {"s3": "sagemaker", "hf": "hub"}


def from_s3(address: str, target: Path) -> Path:
    """Download `bucket/prefix`: the object of that name, or every object below it."""
    import boto3

    bucket, _, prefix = address.partition("/")
    prefix = prefix.rstrip("/")
    s3 = boto3.client("s3", region_name=os.environ.get("AWS_REGION"))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [row["Key"] for page in pages for row in page.get("Contents", ())]
    found = {
        key: _inside(key.removeprefix(prefix))
        for key in keys
        if key == prefix or key.startswith(f"{prefix}/")
    }
    if not found:
        raise StageError("nothing exists under that name")
    for key, name in found.items():
        place = target / name if name else target
        place.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(place))
    return target


def _inside(name: str) -> str:
    """Return an object's name below the prefix. Raises StageError for one that leads elsewhere."""
    parts = name.removeprefix("/").split("/")
    if parts != [""] and any(part in ("", ".", "..") for part in parts):
        raise StageError(f"the object name {name!r} is not a file path")
    return "/".join(parts)


def from_hub(address: str, target: Path) -> Path:
    """Download `owner/name[@revision][/folder]` of the Hub, or one file of it."""
    from huggingface_hub import snapshot_download

    owner, _, rest = address.partition("/")
    name, _, folder = rest.partition("/")
    name, _, revision = name.partition("@")
    snapshot_download(
        f"{owner}/{name}", revision=revision or None, local_dir=target,
        allow_patterns=[folder, f"{folder}/*"] if folder else None,
    )  # fmt: skip
    shutil.rmtree(target / ".cache", ignore_errors=True)
    found = target / folder
    if not found.exists():
        raise StageError("nothing exists under that name")
    return found


def main(address: str, target: str) -> int:
    """Download and say where to; return the exit code."""
    scheme, _, rest = address.partition("://")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        print({"s3": from_s3, "hf": from_hub}[scheme](rest, Path(target)))  # noqa: T201
    except ImportError as error:
        said = f"{error.name} is not installed (pip install 'deploy-runner[{_EXTRAS[scheme]}]')"
    except StageError as error:
        said = error.message
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
    else:
        return 0
    print(said, file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
