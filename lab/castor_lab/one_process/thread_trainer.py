"""A trainer that is a thread: real session, real link, real memory; it can be killed at a step."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from castor_lab.one_process.memory_group import Meeting, MemoryGroup
from castor_runtime.state.protocol import State
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import post_gloo
from castor_runtime.trainer.joining import Exchanging, NewGroup
from castor_runtime.trainer.random_state import capture_random_state
from castor_runtime.trainer.session import TrainerSession

META_BYTES = 1 << 14
_TIMEOUT_S = 60.0


class KilledError(BaseException):
    """The trainer was killed: no code of its own is to hear of it."""


class LeftError(BaseException):
    """The training program ends with code 0, wherever it is: no code of it is to hear of it."""


def _in_memory(
    settings: TrainerSettings,
    device: torch.device,
    control: dist.ProcessGroup,
    make_group: NewGroup,
    timeout: timedelta,
    gives_up: Callable[[], bool],
) -> Exchanging:
    """Exchange by a group too: a thread that is killed leaves its connections open, a group not."""
    del settings, control, gives_up
    group = make_group("gloo", timeout)
    return Exchanging(partial(post_gloo, group), device, group)


class TrainerThread:
    """One trainer of one generation.

    Args:
        settings: as the agent gave them.
        meeting: of its generation.
        train: what it does; its return is an end with code 0.
        log: where its traceback goes.

    Attributes:
        settings: as the agent gave them.
        meeting: of its generation.
        killed: it is to do nothing any more.
        session: its place with its agent, once `join` has made it.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        meeting: Meeting,
        train: Callable[[TrainerThread], None],
        log: Path,
    ) -> None:
        self.settings = settings
        self.killed = threading.Event()
        self.session: TrainerSession | None = None
        self.meeting = meeting
        self._train = train
        self._log = log
        self._groups: list[MemoryGroup] = []
        self._user: dict[str, Any] = {}
        self._state: State
        self._thread = threading.Thread(target=self._run, name="castor-trainer", daemon=True)
        self._ended: Callable[[int], None] = lambda _: None

    def start(self, ended: Callable[[int], None]) -> int:
        """Begin; return what the kernel calls this thread.

        Args:
            ended: called with the code of its end, in the thread.
        """
        self._ended = ended
        self._thread.start()
        assert self._thread.native_id is not None, "it runs"
        return self._thread.native_id

    def kill(self) -> None:
        """Have it end, wherever it is, as its process would."""
        self.killed.set()
        self.meeting.leave(self.settings.rank)
        self._let_go()

    # ---- what the training program calls --------------------------------------------------------

    def join(self, state: State, user: dict[str, Any]) -> TrainerSession:
        """Join the generation: see `TrainerSession`."""
        self._state, self._user = state, user
        # At hand before it is whole: who is killed while joining has threads and a link, too.
        self.session = TrainerSession.__new__(TrainerSession)
        TrainerSession.__init__(
            self.session,
            self.settings,
            state,
            META_BYTES,
            _TIMEOUT_S,
            "replication",
            make_group=self.make_group,
            exchange_by=_in_memory,
        )
        return self.session

    def make_group(self, _: str, __: timedelta = timedelta()) -> dist.ProcessGroup:
        """Return a group of all ranks, who call this at the same points."""
        group = MemoryGroup(self.meeting, self.settings.rank, f"group {len(self._groups)}")
        self._groups.append(group)
        return group

    def meta(self) -> dict[str, Any]:
        """Return the small part of the state."""
        return {
            **self._state.meta(),
            "user": {name: held.state_dict() for name, held in self._user.items()},
            "random": capture_random_state(),
        }

    def die(self) -> None:
        """End here and now, by signal 9."""
        raise KilledError

    def leave(self) -> None:
        """End here and now, with code 0, as a script that calls `sys.exit(0)`."""
        raise LeftError

    def go_on(self) -> None:
        """Return, unless this trainer was killed."""
        if self.killed.is_set():
            raise KilledError

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        code = 1
        try:
            self._train(self)
            code = 0
        except LeftError:
            code = 0
        except KilledError:
            code = -signal.SIGKILL
        except BaseException:  # noqa: BLE001 - it ends this trainer, and only this one
            code = -signal.SIGKILL if self.killed.is_set() else 1
            with self._log.open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        finally:
            self.meeting.leave(self.settings.rank)
            self._let_go()
            self._end_threads()
            for group in self._groups:
                group.close()
            self._ended(code)

    def _let_go(self) -> None:
        """Do what the kernel does at a process's end, and wake up whoever waits in here."""
        has = vars(self.session) if self.session is not None else {}
        if "_heartbeat" in has:
            has["_heartbeat"].stop()
        if has.get("_here") is not None:
            has["_here"].gate.open()
        if "_link" in has:
            with contextlib.suppress(OSError):  # closed already
                has["_link"]._socket.shutdown(socket.SHUT_RDWR)

    def _end_threads(self) -> None:
        """Wait for the thread that writes checkpoint memory, and close the link.

        Its groups are gone, so it waits for nobody.
        """
        has = vars(self.session) if self.session is not None else {}
        here = has.get("_here")
        if here is not None and here.replicator is not None:
            here.replicator.close()
        link = has.get("_link")
        if link is not None:
            link.close()
