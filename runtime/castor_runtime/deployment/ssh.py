"""Hosts reached by OpenSSH's own client: agents are started there, followed and ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from castor_runtime.deployment.remote_start import FOLLOWED, STARTED

_DEFAULTS: Final = (
    *("-o", "BatchMode=yes"),  # it must not ask: nobody would know for which host
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
)

_UNREACHED_CODE: Final = 255
"""Of ssh itself: it did not come to the host, or lost it."""
_LINE_BYTES: Final = 1 << 20


class Came(StrEnum):
    """What became of one host."""

    ENDED = "ended"
    UNREACHED = "unreached"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class HostEnd:
    """How it ended with one host.

    Attributes:
        host: as the hostfile has it.
        came: what became of it.
        code: of its agent, where that ended.
        why: what ssh said, where it did not reach the host, or lost it.
    """

    host: str
    came: Came
    code: int = 0
    why: str = ""


class SshHost:
    """One host of a launch.

    Args:
        host: as ssh takes it.
        options: of ssh's own.
        say: gets each line that the host's agent says.
        tell: gets what is to be said of the host itself.
    """

    def __init__(
        self,
        host: str,
        options: Sequence[str],
        say: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.host = host
        self._options = options
        self._say = say
        self._tell = tell

    async def _ssh(self, script: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            # Of an option that comes twice ssh takes the first.
            *("ssh", *self._options, *_DEFAULTS, "--", self.host, "sh"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the launcher's
            limit=_LINE_BYTES,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(script.encode())
            await process.stdin.drain()
            process.stdin.close()
        return process

    async def follow(self, script: str) -> HostEnd:
        """Run `start_script`'s script there and hand its lines on, until the agent has ended."""
        process = await self._ssh(script)
        assert process.stdout is not None
        reached, last = False, ""
        try:
            async for line in process.stdout:
                text = line.decode(errors="replace").rstrip("\n")
                if not reached and text.startswith((STARTED, FOLLOWED)):
                    reached = True
                    if text.startswith(FOLLOWED):
                        self._tell("runs there already, and is followed")
                    continue
                last = text or last
                if reached:
                    self._say(text)
            code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if code == _UNREACHED_CODE:
            return HostEnd(self.host, Came.LOST if reached else Came.UNREACHED, why=last)
        if not reached:  # the script said what is wrong there
            self._tell(last)
        return HostEnd(self.host, Came.ENDED, code)

    async def order(self, script: str) -> bool:
        """Run a script there to its end; say whether it did what it should."""
        process = await self._ssh(script)
        await process.communicate()
        return process.returncode == 0
