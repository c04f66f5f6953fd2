"""Give an exported graph the user's names for its inputs and outputs, and keep its own out of their way.

An exporter names its values after operators and parameters, and fails or joins two of them where an input
or output is called alike. So it is given names that nobody uses, and they are replaced in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from deploy_runner.sdk import StageError, counted

if TYPE_CHECKING:
    import onnx


def neutral(kind: str, count: int) -> list[str]:
    """Return the names for the exporter: of inputs or outputs, which `rename` replaces."""
    return [f"deploy_runner_{kind}_{index}" for index in range(count)]


def refuse_shared(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise StageError where ONNX can't tell two values apart, since each has its name but once."""
    for name in outputs:
        if name in inputs or not name or outputs.count(name) > 1:
            what = "an input too" if name in inputs else "two outputs" if name else "nothing"
            raise StageError(f"the output name {name!r} is taken by {what}",
                             fix="set `output_names` of model.prepare")  # fmt: skip


def rename(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Put the user's names in the place of the neutral ones, whatever the graph calls its own values."""
    graph = model.graph
    if len(graph.output) != len(outputs):
        raise StageError(
            f"the ONNX file has {counted(len(graph.output), 'output')}, the model {len(outputs)}"
        )
    names = dict(zip(neutral("input", len(inputs)), inputs, strict=True))
    _own_value_for_each_output(graph, set(names))
    names |= {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    wanted = {*inputs, *outputs}
    taken = wanted | set(_values(graph))
    for own in sorted((wanted & set(_values(graph))) - set(names)):
        names[own] = next(
            free for free in (f"{own}_{i}" for i in range(1, len(taken) + 2)) if free not in taken
        )
        taken.add(names[own])
    _replace(graph, lambda name: names.get(name, name))


def _own_value_for_each_output(graph: onnx.GraphProto, inputs: set[str]) -> None:
    """An output that is an input, a weight or another output gets a value of its own."""
    import onnx

    seen = {*inputs, *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for index, (value, name) in enumerate(
        zip(graph.output, neutral("output", len(graph.output)), strict=True)
    ):
        if value.name in seen:
            fresh = f"{name}_of_its_own"
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [fresh], f"output_{index}"))
            value.name = fresh
        seen.add(value.name)


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of every value of a graph and of the graphs inside it."""
    for group in (graph.input, graph.output, graph.initializer, graph.value_info):
        yield from (value.name for value in group)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from node.output
        for inner in _inner(node):
            yield from _values(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _replace(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    for group in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in group:
            value.name = new(value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new(annotation.tensor_name)
    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for inner in _inner(node):
            _replace(inner, new)
