"""`local:` more emulated machines of this computer, as a run's launcher starts them."""

from __future__ import annotations

from castor_configs.errors import InputError
from castor_runtime.operators.protocol import JobToJoin, Request


class LocalOperator:
    """Starts agents where the launcher starts its own."""

    patience_s = 0.0  # it is there at once, or has died since

    def __init__(self, rest: str, job: JobToJoin) -> None:
        if rest:
            raise InputError(f"local: takes nothing more, not {rest!r}", key="--operator")
        if job.start_here is None:
            raise InputError(
                "local: goes with --agents local, whose launcher starts them", key="--operator"
            )
        self._start = job.start_here

    async def provide(self, request: Request) -> str:
        """See `Operator.provide`; raises ForkServerError when agents cannot be started any more."""
        del request  # the launcher has names of its own
        return f"starting {await self._start()}"
