"""The base of every push: reach a service, change what differs from the inputs, record the changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from deploy_runner.sdk import Context, File, Finding, Output, Stage, StageOutputs

from .backoff import ASKED, Backoff
from .transcript import Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A connected service: `backoff` retries its calls, `transcript` records its changes."""

    ctx: Context
    backoff: Backoff
    transcript: Transcript


class Push(Stage, ABC):
    """The base of every push: one class for each kind of service defines `service`, each push the rest."""

    network = True
    converges = True

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every change, and the final state")

    @abstractmethod
    def service(self, ctx: Context, params: Any, backoff: Backoff) -> AbstractContextManager[Any]:
        """Yield the Service; turn whatever its client raises into a StageError of one sentence."""

    @abstractmethod
    def converge(self, service: Any, params: Any, inputs: Any, outputs: Any) -> Mapping[str, Any]:
        """Change what differs, and check it; return the final state for the transcript."""

    @abstractmethod
    def findings(self, service: Any, params: Any, inputs: Any) -> list[Finding]:
        """Compare the remote with the pipeline; change nothing."""

    def restore(self, service: Any, params: Any, to: str) -> str:
        """Restore the previous release, or the one whose digest begins with `to`; return what it is."""
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
        """Return the findings, with fewer retries than a push."""
        with self.service(ctx, params, Backoff(attempts=ASKED, log=ctx.log)) as service:
            return self.findings(service, params, inputs)

    def rollback(self, ctx: Context, params: Any, to: str) -> str:
        """Restore the previous release, or the one whose digest begins with `to`."""
        with self.service(ctx, params, Backoff(log=ctx.log)) as service:
            return self.restore(service, params, to)
