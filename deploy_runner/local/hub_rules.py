"""What the Hub refuses or decides by rule: metadata of a card, names, which files are large."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["eval_results", "metadata_errors", "wants_lfs"]

_LFS_SUFFIXES = (".safetensors", ".onnx", ".data", ".bin", ".pt", ".pth", ".ptl", ".pte", ".gz",
                 ".tar", ".zip", ".npz", ".npy", ".h5", ".tflite", ".pkl", ".parquet")  # fmt: skip
_LFS_BYTES = 10 * 1024 * 1024
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")

_LICENSE_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
unknown other
"""
"""Source: https://huggingface.co/docs/hub/repositories-licenses"""

_LICENSES = frozenset(_LICENSE_NAMES.split())


def metadata_errors(content: str) -> list[str]:
    """Return what is wrong with the YAML at the head of a README.md; nothing where all is well."""
    import yaml

    block = re.match(r"\s*---\n(.*?)\n---", content, re.DOTALL)
    try:
        value = yaml.safe_load(block.group(1)) if block else {}
    except yaml.YAMLError as error:
        return [str(error)]
    if not isinstance(value, dict):
        return ["The metadata is not a mapping"]
    return [*_license_errors(value.get("license")), *_text_errors(value), *_index_errors(value)]


def _license_errors(value: Any) -> list[str]:
    given = value if isinstance(value, list) else [value]
    known = all(license_ is None or license_ in _LICENSES for license_ in given)
    return [] if known else [f'"license" must be one of [{", ".join(sorted(_LICENSES))}]']


def _text_errors(value: dict[str, Any]) -> list[str]:
    """Return errors of what must be text, or texts: YAML reads the language `no` as false."""
    errors = []
    for name in ("language", "tags", "library_name", "pipeline_tag", "datasets", "base_model"):
        given = value.get(name, [])
        if not all(isinstance(text, str) for text in (given if isinstance(given, list) else [given])):
            errors.append(f'"{name}" must be a string, or an array of strings')
    given = value.get("language", [])
    errors += [
        f'"language" with value "{code}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
        '(two/three letters), or a special value like "code", "multilingual"'
        for code in (given if isinstance(given, list) else [given])
        if isinstance(code, str) and not _LANGUAGE.fullmatch(code)
    ]
    return errors


def _index_errors(value: dict[str, Any]) -> list[str]:
    """Return errors of `model-index`: every result has a task, a dataset and metrics with type and value."""
    errors = []
    for model in value.get("model-index") or []:
        if not isinstance(model, dict) or "name" not in model:
            return ['"model-index[0].name" is required']
        for i, result in enumerate(model.get("results", [])):
            wanted = {"task": ("type",), "dataset": ("type", "name")}
            errors += [
                f'"model-index[0].results[{i}].{part}.{key}" is required'
                for part, keys in wanted.items()
                for key in keys
                if key not in result.get(part, {})
            ]
            if any({"type", "value"} - set(metric) for metric in result.get("metrics", [{}])):
                errors.append(f'"model-index[0].results[{i}].metrics[0].value" is required')
    return errors


def eval_results(path: str, text: str) -> list[dict[str, Any]]:
    """Return the results in a file of `.eval_results/` as `expand=evalResults` has them, or its error.

    Source: https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml
    """
    import yaml

    try:
        rows = yaml.safe_load(text)
        for row in rows:
            str(row["dataset"]["id"]).index("/")
            row["dataset"]["task_id"], row["value"]
            row.get("source", {"url": ""})["url"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        return [{"filename": path, "error": f"{type(error).__name__}: {error}"}]
    return [{"filename": path, "data": row} for row in rows]


def wants_lfs(path: str, size: int) -> bool:
    """Say whether the Hub takes a file by LFS: by its suffix, or above 10 MB."""
    return size >= _LFS_BYTES or path.endswith(_LFS_SUFFIXES)
