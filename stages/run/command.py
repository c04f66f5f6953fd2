"""`run.command`: the user's own step as a command line."""

from __future__ import annotations

from pydantic import ConfigDict

from deploy_runner.sdk import Context, Field, Stage, StageInputs, StageOutputs, StageParams


class RunCommand(Stage):
    """Run a command of your own on declared inputs and outputs.

    The command gets the paths of its files in the environment variables `INPUT_NAME` and
    `OUTPUT_NAME`, with the names in capitals, and runs in a private folder. It creates the folders
    among its outputs itself. A text is run by `sh -eu`, a list without a shell. An input of 1 MiB
    or more is read-only: write to a copy (`cp --no-preserve=mode`). It runs again if the command or
    the content of an input changes, so make your own script an input too.
    """

    uses = "run.command"

    class Params(StageParams):
        """The step."""

        command: str | list[str] = Field(description="a shell text, or a list of arguments")

    class Inputs(StageInputs):
        """Files and folders under names of your own."""

        model_config = ConfigDict(extra="allow")

    class Outputs(StageOutputs):
        """Paths under names of your own; one that ends with / is a folder."""

        model_config = ConfigDict(extra="allow")

    def command(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> list[str]:
        """Return the argument list that the worker becomes."""
        if isinstance(params.command, str):
            return ["/bin/sh", "-euc", params.command]
        return params.command
