"""How a trainer talks with the agent that started it: JSON lines over a Unix stream socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

from castor_policy.agents.documents import Document, int_rows
from castor_policy.job_options import JobOptions
from castor_records.events.event import Event
from castor_runtime.arena import RankControl
from castor_runtime.trainer.swap.errors import LostRankError

ENVIRONMENT = "CASTOR_TRAINER"
_HEARTBEAT_S = 0.05


class AgentLostError(RuntimeError):
    """The agent closed the link; a trainer without an agent has no checkpoint memory."""


class Who(TypedDict):
    """Whose event it is."""

    generation: int
    rank: int


@dataclass(frozen=True, slots=True)
class TrainerSettings(JobOptions, Document):
    """What the agent tells a trainer when it starts it, in the environment.

    The job's options are nested in it as in its `JobSpec`: `settings.traffic.mu`.

    Attributes:
        job: its name.
        run: which run of that name; checkpoint memory of another one is refused.
        rank: machine * ranks_per_machine + local_rank.
        machine: the place that this machine fills.
        local_rank: which trainer of the machine.
        generation: the attempt at running all trainers.
        ranks_per_machine: R.
        replicas: the placement; row i: the machines that hold shard i, i first.
        socket: path of the agent's Unix socket.
        control: name of the control segment.
        started_ns: start of the run, CLOCK_REALTIME.
        folder: where files of this machine's trainers go; "" for beside the socket.
        in_place: some trainers stay from the generation before: what a new one makes before
            `Checkpointer.resume` is made without them, and meets them there.
        is_spare: nobody's place is free yet: it waits there until it is told one.
    """

    job: str
    run: str
    rank: int
    machine: int
    local_rank: int
    generation: int
    ranks_per_machine: int
    replicas: tuple[tuple[int, ...], ...]
    socket: str
    control: str
    started_ns: int
    folder: str = ""
    in_place: bool = False
    is_spare: bool = False

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> TrainerSettings | None:
        """Return what CASTOR_TRAINER says; None outside Castor.

        Raises:
            ValueError: it is set, but misses a setting, or is another version's.
        """
        text = environment.get(ENVIRONMENT)
        if not text:
            return None
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{ENVIRONMENT}: {error}; start trainers by `castor agent`") from error

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"replicas": int_rows(record["replicas"])}

    @property
    def world_size(self) -> int:
        """How many ranks the job has."""
        return len(self.replicas) * self.ranks_per_machine

    @property
    def who(self) -> Who:
        """Whose events this trainer's are."""
        return {"generation": self.generation, "rank": self.rank}

    def holders(self) -> list[int]:
        """Return the ranks that keep a remote replica of this rank's part, in placement's order."""
        row = self.replicas[self.machine][1:]
        return [machine * self.ranks_per_machine + self.local_rank for machine in row]

    def sources(self) -> list[tuple[int, int]]:
        """Return (rank, which remote replica) of each part whose replica this trainer receives."""
        return [
            (machine * self.ranks_per_machine + self.local_rank, row.index(self.machine) - 1)
            for machine, row in enumerate(self.replicas)
            if self.machine in row[1:]
        ]


class AgentLink:
    """A connection to the agent. Safe to use from several threads.

    Args:
        path: of the agent's socket.
        generation: of the trainer, so far.

    Raises:
        AgentLostError: nobody listens there.
    """

    def __init__(self, path: str, generation: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise AgentLostError(f"the agent does not answer at {path}: {error}") from error
        self._sending = threading.Lock()
        self._arrived = threading.Condition()
        self._messages: deque[dict[str, Any]] = deque()
        self._redundant = False
        self._lost = False
        self._generation = generation
        self._left_up_to = -1
        self._joins: deque[dict[str, Any]] = deque()
        self._on_leave: Callable[[int], None] = lambda _generation: None
        threading.Thread(target=self._read, name="castor-link", daemon=True).start()

    def send(self, op: str, **body: object) -> None:
        """Send one message.

        Raises:
            AgentLostError: the agent is gone.
        """
        line = json.dumps({"op": op, **body}, separators=(",", ":")) + "\n"
        try:
            with self._sending:
                self._socket.sendall(line.encode())
        except OSError as error:
            raise AgentLostError(f"the agent is gone: {error}") from error

    def event(self, event: Event) -> None:
        """Send an event of the run, with the time it has now.

        Raises:
            AgentLostError: the agent is gone.
        """
        self.send("event", kind=event.kind, time_ns=time.time_ns(), fields=event.fields())

    def load_order(self) -> dict[str, Any]:
        """Wait for the next "load" and return it.

        Raises:
            AgentLostError: the agent is gone.
            LostRankError: it says that this generation is over.
        """
        with self._arrived:
            self._wait(lambda: bool(self._messages))
            return self._messages.popleft()

    @property
    def is_redundant(self) -> bool:
        """Every replica that belongs on this machine is there again, or will not be fetched."""
        return self._redundant

    def wait_redundant(self) -> None:
        """Wait until every replica that belongs on this machine is there again.

        Nothing may be overwritten before that.

        Raises:
            AgentLostError: the agent is gone.
            LostRankError: it says that this generation is over.
        """
        with self._arrived:
            self._wait(lambda: self._redundant)

    def wait_for_end(self) -> NoReturn:
        """Wait until the agent ends this trainer or its generation, or is gone.

        Raises:
            AgentLostError: the agent is gone.
            LostRankError: the generation is over.
        """
        with self._arrived:
            self._wait(lambda: False)
        raise AssertionError("it waits for ever")

    # ---- one generation after the other ---------------------------------------------------------

    def on_leave(self, call: Callable[[int], None]) -> None:
        """Have `call` called with a generation that is over, in this link's thread."""
        self._on_leave = call

    @property
    def is_over(self) -> bool:
        """Whether the agent has said that this trainer's generation is over."""
        return self._left_up_to >= self._generation

    def wait_over(self, limit_s: float) -> bool:
        """Return whether that is said within so many seconds.

        Raises:
            AgentLostError: the agent is gone.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self.is_over or self._lost, limit_s)
            self._require_agent()
            return self.is_over

    def join_order(self) -> dict[str, Any]:
        """Wait for the word which generation to join, and be in it from then on.

        Raises:
            AgentLostError: the agent is gone.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self._joins or self._lost)
            self._require_agent()
            order = self._joins.popleft()
            self._generation = int(order["generation"])
            self._messages.clear()
            self._redundant = False
            return order

    def _wait(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds, in this generation."""
        self._arrived.wait_for(lambda: holds() or self._lost or self.is_over)
        if self.is_over:
            raise LostRankError(f"generation {self._generation} is over")
        if not holds():
            self._require_agent()

    def _require_agent(self) -> None:
        if self._lost:
            raise AgentLostError("the agent is gone; it closed the link")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError):
            pass  # as if it had ended: the agent is gone, or speaks no JSON
        with self._arrived:
            self._lost = True
            self._arrived.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if message["op"] == "leave":
            # Before it is told: who is woken finds that nobody can be met in that generation.
            self._on_leave(int(message["generation"]))
        with self._arrived:
            if message["op"] == "load":
                self._messages.append(message)
            elif message["op"] == "redundant":
                self._redundant = True
            elif message["op"] == "leave":
                self._left_up_to = max(self._left_up_to, int(message["generation"]))
            elif message["op"] == "join":
                self._joins.append(message)
            self._arrived.notify_all()


class Heartbeat:
    """Counts `control.heartbeat` up every 50 ms, until the process stands still or ends.

    Args:
        control: of this trainer.
        watch: called before each beat, in the heartbeat's thread.
    """

    def __init__(self, control: RankControl, watch: Callable[[], None] = lambda: None) -> None:
        self._control = control
        self._watch = watch
        self._stop = threading.Event()
        threading.Thread(target=self._beat, name="castor-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Let it end."""
        self._stop.set()

    def _beat(self) -> None:
        while True:
            # A group may be destroyed while it is counted: that must not stop the heart.
            with contextlib.suppress(Exception):
                self._watch()
            self._control.heartbeat += 1
            if self._stop.wait(_HEARTBEAT_S):
                return
