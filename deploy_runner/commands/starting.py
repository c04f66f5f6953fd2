"""From what was found to the stages of a pipeline: the model, its conversions, the gates, the goal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..errors import UsageError
from .looking import Found

__all__ = ["MODEL", "WEIGHTS", "Goal", "Stages", "model_stages", "prepared", "stages_for", "weights_stage"]

Goal = Literal[
    "onnx", "sagemaker", "docker", "hub", "triton", "kserve", "oci", "mlflow", "openvino", "mobile", "coreml"
]
Stages = dict[str, dict[str, Any]]

MODEL = "${{ stages.model.outputs.model }}"
_LONGEST_REPO = 96
"""Of a name on the Hub."""
WEIGHTS = "${{ stages.weights.outputs.weights }}"


def model_stages(found: Found, *, samples: str | None = None) -> Stages:
    """Return the stages that make the bundle `model` of what was found; `samples` is an .npz of real ones.

    Raises UsageError where nothing builds the model.
    """
    real = {"samples": samples} if samples else {}
    match found.kind:
        case "transformers":
            return {"model": {"uses": "model.transformers", "inputs": {"folder": found.path}}}
        case "onnx":
            return {"model": {"uses": "model.onnx", "inputs": {"model": found.path, **real}}}
        case "torchscript" | "pt2":
            told = {name: found.fit[name] for name in ("example", "dynamic") if found.fit[name] is not None}
            made = {"uses": "model.program", "trust": True, "inputs": {"program": found.path, **real}}
            return {"model": made | ({"with": told} if told else {})}
        case "adapter":
            raise UsageError(
                f"{found.path} is a LoRA adapter of {found.facts['base'] or 'another model'}",
                fix="start from that model's folder, and add to its checkpoint.state_dict `inputs: "
                f"{{checkpoint: {found.path}, base: …}}`",
            )
        case "weights":
            if found.factory is None or found.fit["example"] is None:
                raise _nothing_builds(found)
            return {
                "weights": weights_stage(found),
                "model": {
                    "uses": "model.prepare",
                    "inputs": {"weights": WEIGHTS, **real},
                    "with": prepared(found.factory, found.fit, found.fit["example"]),
                },
            }
        case kind:
            raise UsageError(f"{found.path} is {kind}, which no stage takes as a source")


def weights_stage(found: Found) -> dict[str, Any]:
    """Return the stage that takes the weights of a checkpoint."""
    made: dict[str, Any] = {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": found.path}}
    if found.facts["module"]:
        made["trust"] = True
    told = {"code": found.code, "strip_prefix": found.fit.get("strip_prefix")}
    if any(told.values()):
        made["with"] = {name: value for name, value in told.items() if value}
    return made


def prepared(factory: str, fit: Mapping[str, Any], example: Any) -> dict[str, Any]:
    """Return the parameters of model.prepare."""
    made: dict[str, Any] = {"factory": factory}
    if fit.get("kwargs"):
        made["kwargs"] = fit["kwargs"]
    made["example"] = example
    if fit.get("dynamic") is not None:
        made["dynamic"] = fit["dynamic"]
    return made


def _nothing_builds(found: Found) -> UsageError:
    if found.factory is not None:
        return UsageError(f"{found.factory} fits the weights, but no input was found that it takes",
                          fix="say the shape of one: --shape 1,3,224,224")  # fmt: skip
    if found.tried:
        name, why = next(iter(found.tried.items()))
        other = "name what does, with its arguments: --factory FILE.py:NAME --kwargs 'NAME: VALUE'"
        missing = "is not installed" in why  # Then it says itself what to do.
        return UsageError(f"{name} doesn't build this model: {why}", fix="" if missing else other)
    return UsageError(
        "nothing in the project builds this model",
        fix="name what does: --factory FILE.py:NAME, or package.module:NAME",
    )


def stages_for(found: Found, goal: Goal, name: str) -> Stages:
    """Return all stages for a goal; `name` is that of the endpoint, the image or the repository.

    Raises UsageError for a goal that what was found can't have.
    """
    stages = model_stages(found)
    if goal in _OF_MODEL:
        uses, called = _OF_MODEL[goal]
        if found.kind == "onnx":
            raise UsageError(f"{called} takes no .onnx file", fix="start from the checkpoint of the model")
        return stages | {goal: {"uses": uses, "inputs": {"model": MODEL}}}
    onnx = "${{ stages.onnx.outputs.model }}"
    if found.kind == "onnx":
        onnx = "${{ stages.model.outputs.onnx }}"
    else:
        stages["onnx"] = {"uses": "onnx.export", "inputs": {"model": MODEL}}
    stages["checked"] = {"uses": "onnx.check", "inputs": {"model": onnx}}
    stages["parity"] = {"uses": "verify.parity", "inputs": {"candidate": onnx, "reference": MODEL}}
    return stages | _GOALS[goal](found, onnx, name)


def _judged(uses: str, inputs: dict[str, Any], **params: str) -> dict[str, Any]:
    """Return a stage that takes the ONNX file once the gates have let it through."""
    stage = {"uses": uses, "needs": ["checked", "parity"], "inputs": inputs}
    return stage | ({"with": params} if params else {})


def _sagemaker(found: Found, onnx: str, name: str) -> Stages:
    package = "${{ stages.package.outputs."
    return {
        "package": _judged("package.sagemaker", {"model": onnx, "reference": MODEL}),
        "endpoint": {
            "uses": "push.sagemaker",
            "inputs": {"package": f"{package}package }}}}", "smoke": f"{package}smoke }}}}"},
            "with": {"endpoint": re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")},
        },
    }


def _docker(found: Found, onnx: str, name: str) -> Stages:
    image = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    return {"image": _judged("package.container", {"model": onnx, "reference": MODEL}, name=image)}


def _hub(found: Found, onnx: str, name: str) -> Stages:
    own = {"weights": {"weights": WEIGHTS}, "transformers": {"folder": found.path}}.get(found.kind, {})
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._]+", "-", name))[:_LONGEST_REPO]
    inputs = {**own, "models": {"fp32": onnx}, "reference": MODEL}
    return {"hub": _judged("push.hub", inputs, repo=plain.strip("-._").removesuffix(".git") or "model")}


def _triton(found: Found, onnx: str, name: str) -> Stages:
    inputs = {"model": onnx, "reference": MODEL}
    return {"triton": _judged("package.triton", inputs, name=_plain(name))}


def _kserve(found: Found, onnx: str, name: str) -> Stages:
    repository = "${{ stages.triton.outputs.repository }}"
    plain = _plain(name)
    return _triton(found, onnx, name) | {
        "stored": {
            "uses": "push.s3",
            "inputs": {"artifact": repository},
            "with": {"prefix": f"models/{plain}"},
        },
        "service": {
            "uses": "package.kserve",
            "inputs": {"repository": repository, "pushed": "${{ stages.stored.outputs.transcript }}"},
            "with": {"name": plain if plain[0].isalpha() else f"model-{plain}"},
        },
    }


def _oci(found: Found, onnx: str, name: str) -> Stages:
    return {"registry": _judged("push.oci", {"artifact": onnx}, repository=f"models/{_plain(name)}")}


def _mlflow(found: Found, onnx: str, name: str) -> Stages:
    inputs = {"model": onnx, "reference": MODEL}
    return {"registered": _judged("push.mlflow", inputs, name=_plain(name))}


def _openvino(found: Found, onnx: str, name: str) -> Stages:
    return {"openvino": {"uses": "openvino.convert", "inputs": {"model": onnx, "reference": MODEL}}}


def _nothing(found: Found, onnx: str, name: str) -> Stages:
    return {}


def _plain(name: str) -> str:
    """Return a name of letters, digits and single hyphens, which every registry takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


_GOALS: Mapping[Goal, Callable[[Found, str, str], Stages]] = {
    "onnx": _nothing, "sagemaker": _sagemaker, "docker": _docker, "hub": _hub, "triton": _triton,
    "kserve": _kserve, "oci": _oci, "mlflow": _mlflow, "openvino": _openvino,
}  # fmt: skip
_OF_MODEL: Mapping[Goal, tuple[str, str]] = {
    "mobile": ("mobile.executorch", "ExecuTorch"), "coreml": ("coreml.convert", "Core ML"),
}  # fmt: skip
"""Goals that take the model itself: the stage type, and what that is called."""
