"""`run.python`: the user's own step as a Python function."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ConfigDict

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
    closest,
)


class RunPython(Stage):
    """Call a function of your own on declared inputs and outputs.

    The function is called as `function(ctx, inputs, outputs, **params)`. `inputs` and `outputs` are dicts
    from each name under `inputs:` and `outputs:` to its `pathlib.Path`. An input of 1 MiB or more is
    read-only, so write to a copy (`shutil.copyfile`). The function writes every output to its path; if the
    path ends with `/` in the pipeline, it creates a folder there. `params` are passed as keyword arguments,
    with the types that YAML gives them. What it returns is ignored; what it prints is in the log.

    `ctx` is the `Context` of the API reference: `ctx.log(text)`, `ctx.figure(name, value)` for figures in the
    record and the report, `ctx.seed`, `ctx.threads`, and `ctx.workdir` for temporary files. To fail, raise
    `StageError` or `GateError` of `deploy_runner.sdk` with one sentence.

    The file is in the project, with a path relative to the pipeline's folder. It runs again if the file
    changes, or a module of the project that it imports, the version of an installed package that these
    import, `params`, or the content of an input. It fails if the function opens a file that isn't declared.
    """

    uses = "run.python"

    class Params(StageParams):
        """The step."""

        function: Code = Field(
            description="the function, as path/to/file.py:name or package.module:name; it is called as "
            "function(ctx, inputs, outputs, **params), the inputs and outputs by name as paths"
        )
        params: dict[str, Any] = Field(default={}, description="keyword arguments for the function")

    class Inputs(StageInputs):
        """Files and folders under names of your own."""

        model_config = ConfigDict(extra="allow")

    class Outputs(StageOutputs):
        """Paths under names of your own; one that ends with / is a folder."""

        model_config = ConfigDict(extra="allow")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Call the function."""
        function = ctx.load(params.function)
        paths = dict(inputs.model_extra or {}), dict(outputs.model_extra or {})
        _check(params.function, function, params.params)
        function(ctx, *paths, **params.params)


def _check(name: str, function: Any, params: dict[str, Any]) -> None:
    """Raise StageError if the function can't be called with these parameters."""
    if not callable(function):
        raise StageError(f"{name} is not a function", fix="write path/to/file.py:function")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # Of some functions in C Python knows no signature.
    known = signature.parameters
    if all(p.kind is not p.VAR_KEYWORD for p in known.values()):
        for param in params:
            if param not in known:
                raise StageError(f"{name} has no parameter {param!r}", fix=closest(param, list(known)[3:]))
    try:
        signature.bind("ctx", "inputs", "outputs", **params)
    except TypeError as error:
        raise StageError(
            f"{name}{signature} can't be called: {error}",
            fix=f"declare it as {function.__name__}(ctx, inputs, outputs{''.join(f', {p}' for p in params)})",
        ) from None
