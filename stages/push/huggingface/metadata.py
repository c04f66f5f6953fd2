"""The YAML at the head of a card, and the evaluation results beside it.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md and
https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from deploy_runner.sdk import Field, StageError, StageParams, closest

from .pretrained import kind_of

__all__ = ["Benchmark", "eval_results", "library", "model_index", "tags", "widget"]

Reports = Mapping[str, Mapping[str, Any]]

_TEXTS = ("feature-extraction", "fill-mask", "text-classification", "text-generation", "token-classification",
          "translation", "summarization")  # fmt: skip
_FILES = ("audio-classification", "automatic-speech-recognition", "depth-estimation", "image-classification",
          "image-feature-extraction", "image-segmentation", "image-to-text", "object-detection")  # fmt: skip


class Benchmark(StageParams):
    """A benchmark's dataset on the Hub, on whose leaderboard the accuracy is to appear."""

    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="the dataset, e.g. openai/gsm8k")
    task: str = Field("default", description="the id of the task in the dataset's eval.yaml")
    revision: str | None = Field(None, description="the commit of the dataset")
    report: str | None = Field(None, description="whose accuracy (default: that of the only one)")
    notes: str | None = Field(None, description="how it was evaluated")


def library(config: Mapping[str, Any], paths: Collection[str]) -> str | None:
    """Return the library of the Hub's list that loads the repository; None where no library of it does.

    The list: https://github.com/huggingface/huggingface.js/blob/main/packages/tasks/src/model-libraries.ts
    """
    weights = any(path.startswith("model") and ".safetensors" in path for path in paths)
    if weights and "modules.json" in paths:
        return "sentence-transformers"
    if weights and {"architecture", "pretrained_cfg"} <= set(config):
        return "timm"
    if kind_of(config) is None:
        return None
    return "transformers" if weights else "transformers.js" if _has_onnx(paths) else None


def tags(config: Mapping[str, Any], paths: Collection[str], *, mixin: bool) -> set[str]:
    """Return by what else the repository is to be found."""
    found = {"deploy-runner"} | ({"model_hub_mixin", "pytorch_model_hub_mixin"} if mixin else set())
    if _has_onnx(paths):
        found |= {"onnx"} if kind_of(config) is None else {"onnx", "transformers.js"}
    return found


def _has_onnx(paths: Collection[str]) -> bool:
    return any(path.endswith(".onnx") for path in paths)


def widget(examples: Sequence[str], task: str | None, paths: Collection[str]) -> list[dict[str, str]]:
    """Return examples as the task's widget takes them: texts, or files of the repository and addresses."""
    if examples and task not in (*_TEXTS, *_FILES):
        raise StageError(f"`examples` have no form for the task {task}",
                         fix=f"set `pipeline_tag`: {', '.join((*_TEXTS, *_FILES))}")  # fmt: skip
    if task in _TEXTS:
        return [{"text": text} for text in examples]
    for path in examples:
        if path not in paths and not path.startswith(("https://", "http://")):
            raise StageError(f"the example {path!r} is not among the files",
                             fix=closest(path, paths) or f"add it: `files: {{{path}: {path}}}`")  # fmt: skip
    return [{"src": path} for path in examples]


def model_index(reports: Reports) -> list[dict[str, Any]]:
    """Return the metrics of reports as the card's model-index has them."""
    results = []
    for name, report in sorted(reports.items()):
        if "accuracy" in report:
            value = round(report["accuracy"] / 100, 6)
            results.append({"type": "accuracy", "name": f"accuracy ({name})", "value": value})
        if "argmax_agreement" in report:
            value = round(report["argmax_agreement"], 6)
            results.append({"type": "argmax_agreement", "name": f"agreement with the original ({name})",
                            "value": value})  # fmt: skip
    return results


def eval_results(benchmark: Benchmark, reports: Reports) -> tuple[str, bytes]:
    """Return the path and the text of the file by which the Hub lists the accuracy on a leaderboard."""
    measured = {name: report["accuracy"] for name, report in sorted(reports.items()) if "accuracy" in report}
    name = benchmark.report or (next(iter(measured)) if len(measured) == 1 else "")
    if name not in measured:
        said = f"`benchmark` names the report {name!r}" if name else "`benchmark` doesn't name its report"
        raise StageError(f"{said}, and those with an accuracy are: {', '.join(measured) or 'none'}",
                         fix="set `report` to one of them")  # fmt: skip
    dataset = {"id": benchmark.dataset, "task_id": benchmark.task}
    row: dict[str, Any] = {"dataset": dataset, "value": round(measured[name], 4)}
    if benchmark.revision:
        dataset["revision"] = benchmark.revision
    if benchmark.notes:
        row["notes"] = benchmark.notes
    text = yaml.safe_dump([row], sort_keys=False, allow_unicode=True)
    return f".eval_results/{benchmark.dataset.rpartition('/')[2]}.yaml", text.encode()
