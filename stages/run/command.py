"""`run.command`: the user's own step as a command line."""

from __future__ import annotations

from pydantic import ConfigDict

from deploy_runner.sdk import Context, Field, Stage, StageInputs, StageOutputs, StageParams


class RunCommand(Stage):
    """Run a command of your own on declared inputs and outputs.

    The command finds its files in `INPUT_NAME` and `OUTPUT_NAME`, and runs in a private folder.
    A text is run by `sh -eu`, a list without a shell.
    """

    uses = "run.command"

    class Params(StageParams):
        """The step."""

        command: str | list[str] = Field(description="a shell text, or a list of arguments")

    class Inputs(StageInputs):
        """Inputs under names of your own."""

        model_config = ConfigDict(extra="allow")

    class Outputs(StageOutputs):
        """Outputs under names of your own."""

        model_config = ConfigDict(extra="allow")

    def command(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> list[str]:
        """Return the argument list that the worker becomes."""
        if isinstance(params.command, str):
            return ["/bin/sh", "-euc", params.command]
        return params.command
