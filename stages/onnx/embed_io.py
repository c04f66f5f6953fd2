"""`onnx.embed_io`: a model whose file takes pixels and answers with labels, for browsers, phones and C++."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..model import bundles, opened_io, protos
from . import io_graph

if TYPE_CHECKING:
    import onnx

    from ...server.raw.rawio import RawIo

_OPSET = 18
"""The first one whose Resize has antialias."""
_SIZES = ((320, 240), (200, 301), (97, 64), (640, 480), (224, 224), (500, 333))


class OnnxEmbedIo(Stage):
    """Move the steps of an io artifact into an ONNX file, as far as ONNX operators can do them.

    For pictures: resizing, cropping, scaling, normalising and the layout, starting from `picture`,
    uint8 [batch, height, width, channels]. Decoding, tokenizing and rows stay with the caller. For
    answers: softmax or sigmoid, the best classes and their labels. The file is compared with the
    Python path on pictures, and the figures say how far they differ: after resizing, pixels differ
    from Pillow's by up to a level of 255, 5 at worst.
    """

    uses = "onnx.embed_io"
    packages = ("onnx", "onnxruntime", "numpy", "pillow", "tokenizers", "soundfile", "soxr")
    preload = ("onnx", "onnxruntime")
    facets = ("arch", "isa")
    extra = "io"

    class Params(StageParams):
        """How far the file may be from the Python path."""

        max_levels: float = Field(
            6, ge=0, description="how far a pixel may be from Pillow's, in levels of 255"
        )
        max_score_difference: float = Field(
            0.05, ge=0, le=1, description="how far the score of a class may be from the Python path's"
        )

    class Inputs(StageInputs):
        """The model, and how it is used."""

        model: File | Folder = Field(description="the ONNX model, opset 18 or later")
        reference: Folder = Field(description="the bundle that it was created from")
        io: Folder = Field(description="the output of model.io")
        data: Folder | None = Field(None, description="pictures to compare on (default: made from a seed)")

    class Outputs(StageOutputs):
        """The model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Add the nodes, save, load back, compare."""
        bundle = bundles.load_bundle(inputs.reference)
        io = opened_io.open_io(inputs.io)
        model = protos.load_proto(inputs.model)
        if protos.opset_of(model) < _OPSET:
            raise StageError(f"the model has opset {protos.opset_of(model)}, resizing needs {_OPSET}",
                             fix=f"export it with `opset: {_OPSET}`")  # fmt: skip
        before = _embed_picture(model, io.spec["picture"]) if "picture" in io.spec else None
        after = _embed_answer(model, io.spec["answer"], bundle)
        if before is None and not after:
            raise StageError("nothing of this io can be part of the file: it has no picture and no classes")
        protos.save_proto(model, outputs.model)
        figures = _compare(ctx, io, bundle, inputs, outputs.model, before)
        for name, value in figures.items():
            ctx.figure(name, value)
        _refuse(ctx.stage, params, figures)


def _embed_picture(model: onnx.ModelProto, spec: Mapping[str, Any]) -> onnx.ModelProto:
    """Put the nodes before the model's; return a model of them alone."""
    from onnx import helper

    name = spec["tensor"]
    graph = model.graph
    part = io_graph.picture_part(spec, name)
    given = next((one for one in graph.input if one.name == name), None)
    if given is None:
        raise StageError(f"the model has no input {name!r}, which the io gives")
    alone = helper.make_model(
        helper.make_graph(part.nodes, "picture", part.inputs, [given], part.constants),
        opset_imports=model.opset_import, ir_version=model.ir_version,
    )  # fmt: skip
    graph.input.remove(given)
    graph.input.extend(part.inputs)
    graph.initializer.extend(part.constants)
    nodes = [*part.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return alone


def _embed_answer(model: onnx.ModelProto, spec: Mapping[str, Any], bundle: bundles.Bundle) -> bool:
    """Put the nodes after the model's; say whether there are any."""
    port = next((p for p in bundle.outputs if p.name == spec.get("output")), None)
    flat = port is not None and len(port.shape) == 2 and port.batch == 0
    part = io_graph.answer_part(spec, port.shape[1] if port is not None and flat else None)
    if part is None:
        return False
    graph = model.graph
    taken = {o.name for o in graph.output} & {o.name for o in part.outputs}
    if taken:
        raise StageError(f"the model has an output {sorted(taken)[0]!r} already")
    replaced = next(one for one in graph.output if one.name == spec["output"])
    graph.output.remove(replaced)
    graph.output.extend(part.outputs)
    graph.initializer.extend(part.constants)
    graph.node.extend(part.nodes)
    return True


def _compare(
    ctx: Context, io: RawIo, bundle: bundles.Bundle, inputs: OnnxEmbedIo.Inputs, made: Path,
    before: onnx.ModelProto | None,
) -> dict[str, Any]:  # fmt: skip
    """Run both paths; return the largest difference of pixels in levels, and of scores."""
    import numpy as np
    import onnxruntime

    run, original = (protos.runner(path, threads=ctx.threads) for path in (made, inputs.model))
    if before is None:
        differences = [
            _scores_differ(io, original(case.inputs), run(case.inputs), case.inputs) for case in bundle.cases
        ]
        return {"max_score_difference": max(differences)}
    prepare = onnxruntime.InferenceSession(before.SerializeToString(), providers=["CPUExecutionProvider"])
    spec = io.spec["picture"]
    levels, scores, count = [0.0], [0.0], 0
    for data, pixels in _pictures(inputs.data, spec):
        count += 1
        ours = io.arrays([{"image": data}])
        (tensor,) = prepare.run(None, {io_graph.PICTURE: pixels[None]})
        levels.append(float((np.abs(tensor - ours[spec["tensor"]]) * _level(spec)).max()))
        if len(bundle.inputs) == 1:
            found = run({io_graph.PICTURE: pixels[None]})
            given = {port.name: ours[port.name] for port in bundle.inputs}
            scores.append(_scores_differ(io, original(given), found, ours))
    return {"pictures": count, "max_levels": max(levels), "max_score_difference": max(scores)}


def _level(spec: Mapping[str, Any]) -> Any:
    """Return by what a difference of tensors is multiplied to be in levels of 255, by channel."""
    import numpy as np

    scale = spec["scale"] or {"divide": 1}
    unit = scale["divide"] if "divide" in scale else 1 / scale["multiply"]
    by_channel = unit * np.array(spec["std"] or [1.0])
    return by_channel.reshape(-1, 1, 1) if spec["layout"] == "CHW" else by_channel


def _scores_differ(
    io: RawIo, original: Mapping[str, Any], found: Mapping[str, Any], given: Mapping[str, Any]
) -> float:
    """Return how far scores of the file are from those of the Python path, 1 for another order of classes."""
    answer = io.spec["answer"]
    if "scores" not in found:
        return 0.0
    differences = [0.0]
    for place, said in enumerate(io.answers(original, given)):
        scores = {one["label"]: one["score"] for one in said["classes"]}
        if answer["kind"] == "classes":
            names = found["labels"][place] if "labels" in found else found["classes"][place]
            pairs = zip(names.tolist(), found["scores"][place].tolist(), strict=True)
        else:
            labels = answer["labels"] or range(found["scores"].shape[1])
            pairs = zip(labels, found["scores"][place].tolist(), strict=True)
        ours = {str(name): score for name, score in pairs}
        differences += [abs(score - ours.get(str(name), 0.0)) for name, score in scores.items()]
    return max(differences)


def _pictures(folder: Path | None, spec: Mapping[str, Any]) -> Iterator[tuple[bytes, Any]]:
    """Yield pictures as files, with the pixels that decoding gives."""
    import numpy as np

    from ...server.raw.decoding import decoded
    from ...server.raw.problems import BadInput

    files = (path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()) if folder else _made()
    for data in files:
        try:
            pixels = np.asarray(decoded(data, spec))
        except BadInput as error:
            raise StageError(f"a picture of `data` can't be read: {error}") from None
        yield data, pixels.reshape(*pixels.shape[:2], -1)


def _made() -> Iterator[bytes]:
    """Yield pictures with waves and noise."""
    import io

    import numpy as np
    from PIL import Image

    for width, height in _SIZES:
        y, x = np.mgrid[0:height, 0:width]
        noise = np.random.default_rng(width * height).normal(0, 20, (height, width))
        waves = [(np.sin(x / 7 + i) + np.cos(y / (5 + i))) * 60 + 128 + noise for i in range(3)]
        file = io.BytesIO()
        Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8)).save(file, "PNG")
        yield file.getvalue()


def _refuse(stage: str, params: OnnxEmbedIo.Params, figures: Mapping[str, Any]) -> None:
    if figures.get("max_levels", 0.0) > params.max_levels:
        raise GateError(
            f"{stage}: a pixel is {figures['max_levels']:.3g} levels of 255 off Pillow's, "
            f"above {params.max_levels:g}"
        )
    if figures["max_score_difference"] > params.max_score_difference:
        raise GateError(
            f"{stage}: a score is {figures['max_score_difference']:.3g} off the Python path's, "
            f"above {params.max_score_difference:g}"
        )
