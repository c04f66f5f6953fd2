"""A pipeline that has everything that a report shows, with names as no one would choose them."""

from __future__ import annotations

from collections.abc import Mapping

from deploy_runner import api
from deploy_runner.store.actions import ActionRecord
from deploy_runner.types import Artifact, Json
from tests.conftest import Project

__all__ = ["LONG", "STRANGE", "choosing", "strange", "tree"]

LONG = "a very long name, of which no box and no table has room for all the letters " * 2
STRANGE = ("<script>alert(1)</script>", "\"quoted\" 'twice'", "smile 🙂 größe", LONG)

_STAGES = '''
"""Stage types that say what models would, without one."""
from __future__ import annotations
import struct, zlib
from deploy_runner.sdk import (
    Context, Field, File, GateError, Output, Stage, StageInputs, StageOutputs, StageParams,
)

class Build(Stage):
    """Build something."""
    uses = "odd.build"
    class Params(StageParams):
        name: str = Field("", description="what its bytes depend on")
    class Inputs(StageInputs):
        text: File = Field(description="a file")
    class Outputs(StageOutputs):
        model: File = Output("model.bin")
        picture: File = Output("picture.png")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        outputs.model.write_text(inputs.text.read_text() + params.name)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(b"\\0\\0\\xff\\0\\xff\\0"))
        outputs.picture.write_bytes(b"\\x89PNG\\r\\n\\x1a\\n" + header + body + chunk(b"IEND", b""))

class Judge(Stage):
    """Say how good something is, and reject what is worse than the limit."""
    uses = "odd.judge"
    class Params(StageParams):
        loss: float = Field(0.0, description="its loss")
        min_cosine: float = Field(0.5, description="the limit")
        say: str = Field("", description="what it prints, and says when it fails")
    class Inputs(StageInputs):
        model: File = Field(description="what is judged")
    class Outputs(StageOutputs):
        report: File = Output("report.txt")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        print(params.say or "fine")
        outputs.report.write_text(inputs.model.read_text())
        figures = {"accuracy": 99.0 - params.loss, "reference_accuracy": 99.0, "drop": params.loss,
                   "max_abs": 0.25, "max_rel": 0.125, "cosine": 1.0 - params.loss, "argmax_agreement": 0.9,
                   "median_us": {"candidate": 120.0, "reference": 240.0},
                   "p95_us": {"candidate": 180.0, "reference": 300.0}}
        for name, value in figures.items():
            ctx.figure(name, value)
        if 1.0 - params.loss < params.min_cosine:
            raise GateError(f"{ctx.stage}: the cosine similarity falls below {params.min_cosine}: {params.say}")

class Pick(Stage):
    """Choose the first of those that it did not reject."""
    uses = "odd.pick"
    class Params(StageParams):
        names: list[str] = Field(description="the candidates")
    class Inputs(StageInputs):
        model: File = Field(description="a model")
    class Outputs(StageOutputs):
        model: File = Output("model.bin")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        outputs.model.write_text(inputs.model.read_text())
        rows = {
            name: {"name": name, "accuracy": 99.0 - n, "drop": float(n), "bytes": 1000 - 100 * n,
                   "latency_us": 50.0 - n, "refused": f"loses {n:.2f} points" if n > 1 else "", "pareto": True}
            for n, name in enumerate(params.names)
        }
        ctx.figure("objective", "latency")
        ctx.figure("max_drop", 1.0)
        ctx.figure("candidates", rows)
        ctx.figure("chosen", params.names[1])
'''


def strange(project: Project, *, many: int = 3) -> None:
    """Write the pipeline: a matrix of hostile names, one of `many` instances, a choice, a gate that fails."""
    import json

    project.write("stages/odd.py", _STAGES)
    project.write("in.txt", "input")
    names = json.dumps(list(STRANGE), ensure_ascii=False)
    project.pipeline(
        f"""
        first: {{uses: odd.build, inputs: {{text: in.txt}}}}
        again:
          uses: odd.build
          inputs: {{text: "${{{{ stages.first.outputs.model }}}}"}}
          matrix: {{name: {names}}}
          with: {{name: "${{{{ matrix.name }}}}"}}
        many:
          uses: odd.judge
          inputs: {{model: "${{{{ stages.first.outputs.model }}}}"}}
          matrix: {{n: {[str(n) for n in range(many)]}}}
          with: {{say: "${{{{ matrix.n }}}}"}}
        pick:
          uses: odd.pick
          inputs: {{model: "${{{{ stages.first.outputs.model }}}}"}}
          needs: [many]
          with: {{names: {names}}}
        gate:
          uses: odd.judge
          inputs: {{model: "${{{{ stages.pick.outputs.model }}}}"}}
          with: {{loss: 0.75, say: "</pre><script>alert(2)</script> | `x`"}}
        after: {{uses: odd.build, inputs: {{text: "${{{{ stages.gate.outputs.report }}}}"}}}}
        """
    )


def choosing(project: Project, *, accuracy: float, bytes_: int) -> None:
    """Write a pipeline that chooses a model, which has an accuracy and a size."""
    text = _STAGES.replace("99.0 - n,", f"{accuracy + 1} - n,").replace("1000 - 100", f"{bytes_ + 100} - 100")
    project.write("stages/odd.py", text)
    project.write("in.txt", "input")
    project.pipeline("pick: {uses: odd.pick, inputs: {model: in.txt}, with: {names: [fp32, int8]}}")


def tree(project: Project, count: int) -> None:
    """Write a pipeline of so many stages, each after one of those before, of which all but the last are hits."""
    own = "{{uses: odd.judge, inputs: {{model: {}}}, with: {{loss: 0.{:04}, min_cosine: 0}}}}"
    project.write("stages/odd.py", _STAGES)
    project.write("in.txt", "input")
    sources = ["in.txt", *(f"'${{{{ stages.stage-{i // 3}.outputs.report }}}}'" for i in range(count - 1))]
    project.pipeline("\n".join(f"stage-{i}: {own.format(s, i)}" for i, s in enumerate(sources)))
    pipeline = api.load(project.folder / "pipeline.yaml")
    planner, store = pipeline.planner(), pipeline.store
    outputs: dict[str, Mapping[str, Artifact]] = {}
    figures: dict[str, Json] = {"accuracy": 98.5, "reference_accuracy": 99.0, "max_abs": 0.25, "max_rel": 0.125, "cosine": 0.9,
               "argmax_agreement": 0.9, "median_us": {"candidate": 120.0, "reference": 240.0},
               "p95_us": {"candidate": 180.0, "reference": 300.0}}  # fmt: skip
    for id_, node in list(pipeline.graph.stages.items())[:-1]:
        decision = planner.decide(node, outputs)
        path = store.new_tmp() / id_
        path.write_text(f"made by {id_}")
        outputs[id_] = {"report": store.ingest(path)}
        own_figures = {**figures, "cosine": len(outputs) / 10_000}
        store.records.put(ActionRecord(decision.key, node.uses, outputs[id_], own_figures, decision.preimage))
