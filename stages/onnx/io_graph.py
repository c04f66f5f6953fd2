"""What ONNX operators can do of an io artifact: pictures from their pixels on, and answers up to labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

if TYPE_CHECKING:
    import onnx

__all__ = ["PICTURE", "Part", "answer_part", "picture_part"]

PICTURE = "picture"
_MODES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


@dataclass
class Part:
    """Nodes with their constants, and what they take and give beside the model's own tensors."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def add(self, op: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Add a node, whose inputs are names or values, and return its output's name."""
        from onnx import helper

        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        made = output or f"{self.prefix}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [made], name=f"{made}_node", **attributes))
        return made

    def constant(self, value: Any) -> str:
        """Add a value, and return its name."""
        from onnx import numpy_helper

        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def picture_part(spec: Mapping[str, Any], tensor: str) -> Part:
    """Return the nodes from `picture`, uint8 [batch, height, width, channels], to the model's tensor.

    Resizing is ONNX's with antialias, which is a level of 255 off Pillow's at some pixels, and up to 5 in
    rare sizes. Raises StageError for what no operator does.
    """
    import numpy as np
    from onnx import TensorProto, helper

    part = Part(prefix="io/picture")
    channels = 1 if spec["mode"] == "L" else 3
    part.inputs = [
        helper.make_tensor_value_info(PICTURE, TensorProto.UINT8, ["batch", "height", "width", channels])
    ]
    pixels = part.add("Transpose", PICTURE, perm=[0, 3, 1, 2])
    if spec["resize"] is not None:
        # All four sizes: onnxruntime's optimizer moves the transpose behind a Resize without its `axes`.
        sizes = part.add("Concat", part.add("Shape", pixels, end=2), _sizes(part, spec["resize"]), axis=0)
        pixels = part.add("Resize", pixels, "", "", sizes, **_how(spec["interpolation"]))
    if spec["crop"] is not None:
        pixels = _cropped(part, pixels, spec)
    if spec["channels"] == "BGR":
        pixels = part.add("Gather", pixels, np.array([2, 1, 0]), axis=1)
    if spec["dtype"] == "float32":
        pixels = part.add("Cast", pixels, to=TensorProto.FLOAT)
        for op, value in _arithmetic(spec):
            pixels = part.add(op, pixels, value)
    perm = [0, 1, 2, 3] if spec["layout"] == "CHW" else [0, 2, 3, 1]
    part.add("Transpose", pixels, perm=perm, output=tensor)
    return part


def _how(interpolation: str) -> dict[str, Any]:
    if interpolation not in _MODES:
        raise StageError(f"ONNX has no resizing by {interpolation}", fix="leave resizing to the caller")
    if interpolation == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor"}
    # As Pillow weighs: nothing beyond the edges, and a cubic of -0.5.
    cubic = {"cubic_coeff_a": -0.5} if interpolation == "bicubic" else {}
    return {"mode": _MODES[interpolation], "antialias": 1, "exclude_outside": 1, **cubic}


def _sizes(part: Part, resize: Mapping[str, Any]) -> Any:
    import numpy as np

    if "size" in resize:
        return np.array(resize["size"], np.int64)
    both = part.add("Shape", PICTURE, start=1, end=3)
    shortest = part.add("ReduceMin", both, keepdims=1)
    longer = part.add("Div", part.add("Mul", both, np.array([resize["shortest"]], np.int64)), shortest)
    return part.add("Max", longer, np.array([1], np.int64))


def _cropped(part: Part, pixels: str, spec: Mapping[str, Any]) -> str:
    import numpy as np
    from onnx import TensorProto

    resize = spec["resize"] or {}
    least = resize.get("size") or [resize.get("shortest", 0)] * 2
    if any(crop > size for crop, size in zip(spec["crop"], least, strict=True)):
        said = f"a crop of {spec['crop'][0]}x{spec['crop'][1]} may be larger than the picture"
        raise StageError(f"{said}, and would be filled up", fix="resize to that size at least")
    crop = np.array(spec["crop"], np.int64)
    spare = part.add("Sub", part.add("Shape", pixels, start=2, end=4), crop)
    half = part.add("Mul", part.add("Cast", spare, to=TensorProto.FLOAT), np.array([0.5], np.float32))
    start = part.add("Cast", part.add("Round", half), to=TensorProto.INT64)
    return part.add("Slice", pixels, start, part.add("Add", start, crop), np.array([2, 3]))


def _arithmetic(spec: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the operators on float32 pixels, in the order and precision of Picture."""
    import numpy as np

    found: list[tuple[str, Any]] = []
    if spec["scale"] is not None:
        (key, value), *_ = spec["scale"].items()
        found.append(("Div" if key == "divide" else "Mul", np.array(value, np.float32)))
    for key, op in (("mean", "Sub"), ("std", "Div")):
        if spec[key] is not None:
            found.append((op, np.array(spec[key], np.float32).reshape(-1, 1, 1)))
    return found


def answer_part(spec: Mapping[str, Any], width: int | None) -> Part | None:
    """Return the nodes from the model's output to the answer; None where it is the answer as it is.

    `width` is the size of the output's last axis. Classes become `scores` and `classes` [batch, top], and
    `labels` where they have names; labels `scores` [batch, classes]; embeddings `embedding` of length 1.
    """
    import numpy as np
    from onnx import TensorProto, helper

    part = Part(prefix="io/answer")
    kind, given = spec.get("kind"), spec.get("output", "")
    if kind == "embedding" and spec["normalize"] and width is not None:
        norm = part.add("ReduceL2", given, np.array([-1]), keepdims=1)
        part.add("Div", given, part.add("Max", norm, np.array(1e-12, np.float32)), output="embedding")
        part.outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])]
        return part
    if kind not in ("classes", "labels") or width is None:
        return None
    scores, count = _scores(part, spec, given, width)
    if kind == "labels":
        part.add("Identity", scores, output="scores")
        part.outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", count])]
        return part
    top = min(spec["top"], count)
    part.nodes.append(
        helper.make_node("TopK", [scores, part.constant(np.array([top]))], ["scores", "classes"], axis=-1)
    )
    part.outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", top]),
        helper.make_tensor_value_info("classes", TensorProto.INT64, ["batch", top]),
    ]
    if spec["labels"] is not None:
        names = np.array([str(name) for name in spec["labels"]], dtype=object)
        part.add("Gather", names, "classes", axis=0, output="labels")
        part.outputs.append(helper.make_tensor_value_info("labels", TensorProto.STRING, ["batch", top]))
    return part


def _scores(part: Part, spec: Mapping[str, Any], given: str, width: int) -> tuple[str, int]:
    import numpy as np

    if width == 1 and spec["kind"] == "classes":
        second = given if spec["activation"] == "none" else part.add("Sigmoid", given)
        first = part.add("Sub", np.array(1, np.float32), second)
        return part.add("Concat", first, second, axis=-1), 2
    if spec["activation"] == "none":
        return given, width
    if spec["activation"] == "softmax":
        return part.add("Softmax", given, axis=-1), width
    return part.add("Sigmoid", given), width
