"""`run.python`: the user's own step as a Python function."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from deploy_runner.sdk import Code, Context, Field, Stage, StageInputs, StageOutputs, StageParams


class RunPython(Stage):
    """Call a function of your own on declared inputs and outputs.

    It is called as `function(ctx, inputs, outputs, **params)`; `inputs` and `outputs` map names
    to paths.
    """

    uses = "run.python"

    class Params(StageParams):
        """The step."""

        function: Code = Field(description="the function, as path/to/file.py:name or package.module:name")
        params: dict[str, Any] = Field(default={}, description="keyword arguments for it")

    class Inputs(StageInputs):
        """Inputs under names of your own."""

        model_config = ConfigDict(extra="allow")

    class Outputs(StageOutputs):
        """Outputs under names of your own."""

        model_config = ConfigDict(extra="allow")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Call the function."""
        function = ctx.load(params.function)
        function(ctx, dict(inputs.model_extra or {}), dict(outputs.model_extra or {}), **params.params)
