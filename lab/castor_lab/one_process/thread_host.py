"""Runs an agent's trainers as threads: the `TrainerHost` of a job in one process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from castor_lab.one_process.memory_group import Meeting
from castor_lab.one_process.thread_trainer import KilledError, TrainerThread
from castor_runtime.agent.script_files import ScriptFiles
from castor_runtime.named import named
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.meeting import VARIABLE


class ThreadHost:
    """See `castor_runtime.agent.trainer_host.TrainerHost`.

    Args:
        meet: returns the meeting of whoever is given this place.
        train: what every trainer does.
    """

    def __init__(
        self, meet: Callable[[str], Meeting], train: Callable[[TrainerThread], None]
    ) -> None:
        self.pid = os.getpid()
        self._meet = meet
        self._train = train
        self._running: dict[int, TrainerThread] = {}
        self._calls: dict[int, threading.Thread] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}

    def preload(self, files: ScriptFiles, tiers: Sequence[str]) -> None:
        """Nothing to do."""

    async def wait_ready(self) -> None:
        """Nothing to wait for."""

    async def start_trainer(
        self,
        rank: int,
        script: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        log: Path,
    ) -> int:
        """Start a thread."""
        del rank, script, arguments
        settings = TrainerSettings.from_environment(environment)
        assert settings is not None, "the agent has set it"
        trainer = TrainerThread(settings, self._meet(environment[VARIABLE]), self._train, log)
        loop = asyncio.get_running_loop()
        end: asyncio.Future[int] = loop.create_future()

        def ended(code: int) -> None:
            loop.call_soon_threadsafe(_set, end, code)

        pid = trainer.start(ended)
        self._running[pid], self._ends[pid] = trainer, end
        return pid

    async def start_call(
        self, name: str, function: str, arguments: Mapping[str, Any], log: Path
    ) -> int:
        """Call the function in a thread."""
        del name
        loop = asyncio.get_running_loop()
        end: asyncio.Future[int] = loop.create_future()

        def call() -> None:
            code = _call(function, dict(arguments), log)
            loop.call_soon_threadsafe(_set, end, code)

        thread = threading.Thread(target=call, name="castor-call", daemon=True)
        thread.start()
        pid = thread.native_id
        assert pid is not None, "it runs"
        self._calls[pid], self._ends[pid] = thread, end
        return pid

    async def wait_end(self, pid: int) -> int:
        """Wait for the end of what was started."""
        return await asyncio.shield(self._ends[pid])

    async def kill_all(self, keep: Collection[int] = ()) -> None:
        """Kill all that was started; wait until no thread of it is left.

        Args:
            keep: nobody: threads share one `torch.distributed`, and none goes on in place.
        """
        assert not keep, "a thread says that it cannot go on in place"
        for trainer in self._running.values():
            trainer.kill()
        for pid, call in self._calls.items():
            if not self._ends[pid].done():
                _interrupt(call)
        await asyncio.gather(*self._ends.values())
        self._running.clear()
        self._calls.clear()
        self._ends.clear()


def _set(end: asyncio.Future[int], code: int) -> None:
    if not end.done():
        end.set_result(code)


def _call(function: str, arguments: dict[str, Any], log: Path) -> int:
    try:
        named(function)(**arguments)
    except KilledError:
        return -signal.SIGKILL
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{end.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001 - as a process of its own would end
        sys.stderr.write(f"{function}: {error}\n")
        return 1
    return 0


def _interrupt(thread: threading.Thread) -> None:
    """Raise `KilledError` in a thread, once it is back from whatever it waits for."""
    assert thread.ident is not None, "it runs"
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(KilledError)
    )
