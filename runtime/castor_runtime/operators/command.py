"""`command:PROGRAM ARGUMENTS`: run a program for each machine that is asked for.

It has the job and the request in its environment (`CASTOR_JOB`, `CASTOR_RUN`, `CASTOR_STORE`,
`CASTOR_SECRET`, a file, `CASTOR_REQUEST`, `CASTOR_AGENT`), calls sbatch, ssh or a cloud's program,
and ends with code 0 once a machine is on its way: its last line says which. Any other code says
that none is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Final

from castor_configs.errors import InputError
from castor_runtime.operators.protocol import JobToJoin, OperatorError, Request

TIMEOUT_S: Final = 600.0
"""A program that runs longer is ended; the machine may be on its way all the same."""

_LINE_LENGTH: Final = 200


class CommandOperator:
    """Runs a program of the user's."""

    patience_s = 900.0  # queues of schedulers, and machines that boot

    def __init__(self, rest: str, job: JobToJoin) -> None:
        try:
            self._words = shlex.split(rest)
        except ValueError as error:
            raise InputError(f"command:{rest}: {error}", key="--operator") from error
        if not self._words or shutil.which(self._words[0]) is None:
            program = self._words[0] if self._words else "a program"
            raise InputError(
                f"command: expected a program that can be run, as command:./provide.sh; there is "
                f"no {program}",
                key="--operator",
            )
        self._job = job

    async def provide(self, request: Request) -> str:
        """See `Operator.provide`; what it prints is kept in the job's folder, a file an attempt."""
        self._job.folder.mkdir(parents=True, exist_ok=True)
        log = self._job.folder / f"{request.agent}.log"
        with log.open("wb") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._words,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,  # no pipe: what it starts in the background keeps that open
                    stderr=output,
                    env=self._environment(request),
                    start_new_session=True,
                )
            except OSError as error:
                raise OperatorError(f"{self._words[0]} cannot be run: {error}") from error
        try:
            code = await asyncio.wait_for(process.wait(), TIMEOUT_S)
        except TimeoutError:
            _end(process)
            return f"{self._words[0]} was ended after {TIMEOUT_S:g} s; a machine may come"
        except asyncio.CancelledError:
            _end(process)
            raise
        if code:
            raise OperatorError(
                f"{self._words[0]} ended with code {code}: {_last_line(log)} (see {log})"
            )
        return _last_line(log)

    def _environment(self, request: Request) -> dict[str, str]:
        job = self._job
        return {
            **os.environ,
            "CASTOR_JOB": job.job,
            "CASTOR_RUN": job.run,
            "CASTOR_STORE": job.store,
            "CASTOR_SECRET": str(job.secret.resolve()),
            "CASTOR_REQUEST": request.name,
            "CASTOR_AGENT": request.agent,
        }


def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:_LINE_LENGTH] if said else "it said nothing"
