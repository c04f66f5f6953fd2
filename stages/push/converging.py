"""What every push is: reach a service, change it where it isn't as the inputs say, write that down."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from deploy_runner.sdk import Context, File, Finding, Output, Stage, StageOutputs

from .backoff import ASKED, Backoff
from .transcript import Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that was reached: its calls are tried by `backoff`, its changes go to `transcript`."""

    ctx: Context
    backoff: Backoff
    transcript: Transcript


class Push(Stage):
    """The base of every push. What follows a service's kind is `service`; the rest is each push's own."""

    network = True
    converges = True

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every change, and what is there in the end")

    def service(self, ctx: Context, params: Any, backoff: Backoff) -> AbstractContextManager[Any]:
        """Yield the Service; turn whatever its client raises into one sentence."""
        raise NotImplementedError

    def converge(self, service: Any, params: Any, inputs: Any, outputs: Any) -> Mapping[str, Any]:
        """Change what isn't as wanted, and check it; return what is there in the end."""
        raise NotImplementedError

    def findings(self, service: Any, params: Any, inputs: Any) -> list[Finding]:
        """Compare what is there with what the pipeline says; change nothing."""
        raise NotImplementedError

    def restore(self, service: Any, params: Any, to: str) -> str:
        """Bring back what was there before, or the digest that begins with `to`; say what is there."""
        return super().rollback(service.ctx, params, to)

    def run(self, ctx: Context, params: Any, inputs: Any, outputs: Any) -> None:
        """Converge, and write the transcript."""
        with self.service(ctx, params, Backoff(log=ctx.log)) as service:
            found = self.converge(service, params, inputs, outputs)
        transcript: Transcript = service.transcript
        ctx.converged = not transcript.changed
        ctx.figure("calls", transcript.calls)
        transcript.write(outputs.transcript, **found)

    def status(self, ctx: Context, params: Any, inputs: Any) -> list[Finding]:
        """Return the findings; nobody waits for them as long as for a push."""
        with self.service(ctx, params, Backoff(attempts=ASKED, log=ctx.log)) as service:
            return self.findings(service, params, inputs)

    def rollback(self, ctx: Context, params: Any, to: str) -> str:
        """Restore what was there before."""
        with self.service(ctx, params, Backoff(log=ctx.log)) as service:
            return self.restore(service, params, to)
