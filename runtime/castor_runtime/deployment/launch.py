"""A launch over ssh: all hosts at once, each for itself; whoever launches is not needed after."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Final, TextIO

from castor_runtime.deployment.ssh import Came, HostEnd, SshHost

DETACHED: Final = 130
"""Exit code after Ctrl-C, as a shell has it."""
QUESTION: Final = "castor: stop the job on all hosts (s), leave it running (d), go on (Enter)? "


class Answer(StrEnum):
    """What is to be done after Ctrl-C."""

    STOP = "s"
    DETACH = "d"
    GO_ON = ""


class Launch:
    """Starts and follows the agents of one job.

    Args:
        job: its name.
        hosts: as ssh takes them.
        options: of ssh's own.
        start: the script that starts a host's agent and follows it.
        stop: the script that ends it.
        ask: asked after Ctrl-C; it may wait for a person.
    """

    def __init__(
        self,
        job: str,
        hosts: Sequence[str],
        options: Sequence[str],
        *,
        start: str,
        stop: str,
        ask: Callable[[], Answer] | None = None,
    ) -> None:
        self._job = job
        self._start, self._stop = start, stop
        self._ask = ask or ask_at_terminal
        width = max(len(host) for host in hosts)
        self._hosts = [
            SshHost(host, options, _sayer(host, width, sys.stdout), _sayer(host, width, sys.stderr))
            for host in hosts
        ]

    async def run(self) -> int:
        """Follow all hosts to the end of the job; return the exit code.

        0 if the job finished, else the worst that an agent ended with; 2 if no host was reached.
        """
        interrupted = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupted.set)
        loop.add_signal_handler(signal.SIGTERM, sys.exit, 128 + signal.SIGTERM)
        following = {asyncio.create_task(self._follow(host)) for host in self._hosts}
        while True:
            waiting = asyncio.create_task(interrupted.wait())
            everything = asyncio.gather(*following)
            done, _ = await asyncio.wait((everything, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if everything in done:
                return _code(everything.result())
            interrupted.clear()
            match await loop.run_in_executor(None, self._ask):
                case Answer.STOP:
                    await self._end()
                case Answer.DETACH:
                    _tell(f"job {self._job} runs on; launch it again to follow it")
                    for task in following:
                        task.cancel()
                    await asyncio.gather(*following, return_exceptions=True)
                    return DETACHED
                case Answer.GO_ON:
                    pass

    async def _follow(self, host: SshHost) -> HostEnd:
        end = await host.follow(self._start)
        match end.came:
            case Came.UNREACHED:
                _tell(f"host {end.host} cannot be reached, the others go on: {end.why}")
            case Came.LOST:
                _tell(f"host {end.host} was lost ({end.why}); what runs there is left to itself")
            case Came.ENDED:
                _tell(f"host {end.host}: its agent ended with code {end.code}")
        return end

    async def _end(self) -> None:
        async def end(host: SshHost) -> None:
            if not await host.order(self._stop):
                _tell(f"host {host.host}: nothing of job {self._job} could be ended there")

        work: list[Awaitable[None]] = [end(host) for host in self._hosts]
        await asyncio.gather(*work)


def ask_at_terminal() -> Answer:
    """Ask who sits there; where nobody can answer, the job is left running."""
    sys.stderr.write(f"\n{QUESTION}")
    sys.stderr.flush()
    text = sys.stdin.readline()
    if not text:
        return Answer.DETACH
    word = text.strip().lower()[:1]
    return Answer(word) if word in ("s", "d") else Answer.GO_ON


def _code(ends: Sequence[HostEnd]) -> int:
    codes = {end.code for end in ends if end.came == Came.ENDED}
    return 2 if not codes else 0 if 0 in codes else max(codes)


def _tell(text: str) -> None:
    sys.stderr.write(f"castor: {text}\n")
    sys.stderr.flush()


def _sayer(host: str, width: int, stream: TextIO) -> Callable[[str], None]:
    def say(text: str) -> None:
        stream.write(f"{host:<{width}} | {text}\n")
        stream.flush()

    return say
