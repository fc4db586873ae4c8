"""The file that one life's journal is written to: bounded, and never in the way of training.

A thread writes what the agent hands over, so that a disk that is slow or hangs holds nobody up. One
that takes no more ends the journal, and so does a line that cannot be made; either is said once.

Every life has a file of its own: where two lives of one name meet, neither writes into the other's.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from castor_policy.agents.effects import RootEffect, WorkerEffect
from castor_policy.agents.life import AgentLife, Taken
from castor_policy.journal.recorder import Recorder

FILE_BYTES = 32 << 20
"""Once a journal is so long it is put away as journal-LIFE.1.jsonl, over what was put away before;
the new one begins with the states of the agent's machines."""

EARLIER_BYTES = 64 << 20
EARLIER_FILES = 32
"""What earlier lives have left is kept up to this; beyond it the oldest go."""

WAITING_LINES = 10_000
"""So many lines may wait for the disk; a minute's of a root of a thousand machines."""

_CLOSE_S = 1.0


class JournalFile:
    """The journal of one life of an agent.

    Args:
        folder: of the agent.
        incarnation: of the life.
        say: told in a line if the journal ends before the agent does.
        file_bytes: see `FILE_BYTES`.
    """

    def __init__(
        self,
        folder: Path,
        incarnation: str,
        say: Callable[[str], None],
        *,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self.path = folder / f"journal-{incarnation}.jsonl"
        self._say = say
        self._file_bytes = file_bytes
        self._size_bytes = 0
        self._recorder = Recorder(self, time.time_ns)
        self._waiting: queue.Queue[tuple[str, bool] | None] = queue.Queue(WAITING_LINES)
        self._writer: threading.Thread | None = None
        self._has_ended = False
        self._saying = threading.Lock()

    # ---- the life's side: `castor_policy.agents.life.Journal` ----------------------------------

    def begin(self, life: AgentLife) -> None:
        """Take in a life that begins."""
        self._guarded(lambda: self._recorder.begin(life))

    def took(
        self,
        life: AgentLife,
        taken: Taken,
        outcome: Sequence[WorkerEffect | RootEffect] | Exception,
    ) -> None:
        """Take in an event, and the effects or the error that it led to."""
        self._guarded(lambda: self._recorder.took(life, taken, outcome))

    def write_failed(self, life: AgentLife) -> None:
        """Take in that the root has learnt that its write was not carried out."""
        self._guarded(lambda: self._recorder.write_failed(life))

    def close(self) -> None:
        """Write what was kept back, and wait a moment for the disk."""
        self._guarded(self._recorder.flush)
        if self._writer is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            self._writer.join(_CLOSE_S)

    def _guarded(self, what: Callable[[], None]) -> None:
        if self._has_ended:
            return
        try:
            what()
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            self._end(f"{type(error).__name__}: {error}")

    # ---- the recorder's side: `castor_policy.journal.recorder.Sink` ----------------------------

    @property
    def is_full(self) -> bool:
        """Whether it is to begin anew."""
        return self._size_bytes >= self._file_bytes

    def append(self, line: str) -> None:
        """Take a line, without its end."""
        self._size_bytes += len(line) + 1
        self._hand_over(line, anew=False)

    def begin_anew(self, line: str) -> None:
        """Put what came before away, and begin with this line."""
        self._size_bytes = len(line) + 1
        self._hand_over(line, anew=True)

    def _hand_over(self, line: str, *, anew: bool) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
            self._writer.start()
        try:
            self._waiting.put_nowait((line, anew))
        except queue.Full:
            self._end("the disk does not keep up")

    # ---- the thread ----------------------------------------------------------------------------

    def _write(self) -> None:
        file = -1
        try:
            forget_earlier(self.path.parent)
            file = self._opened()
            while (taken := self._waiting.get()) is not None and not self._has_ended:
                line, anew = taken
                if anew:
                    # The file that is open goes along: whatever fails here, it is closed once.
                    self.path.replace(self.path.with_suffix(".1.jsonl"))
                    before, file = file, self._opened()
                    os.close(before)
                data = f"{line}\n".encode()
                while data:
                    data = data[os.write(file, data) :]
        except OSError as error:
            self._end(error.strerror or str(error))
        finally:
            if file >= 0:
                os.close(file)

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _end(self, reason: str) -> None:
        with self._saying:
            if self._has_ended:
                return
            self._has_ended = True
        self._say(f"the agent's journal ends here, training goes on: {self.path}: {reason}")


def forget_earlier(
    folder: Path, *, most_bytes: int = EARLIER_BYTES, most_files: int = EARLIER_FILES
) -> None:
    """Delete the oldest journals of an agent's folder, but for so many and so much.

    Raises:
        OSError: the folder cannot be read or changed.
    """
    found = sorted((file.stat().st_mtime_ns, file) for file in folder.glob("journal-*.jsonl"))
    left_bytes, left_files = most_bytes, most_files
    for _, file in reversed(found):
        left_bytes, left_files = left_bytes - file.stat().st_size, left_files - 1
        if left_bytes < 0 or left_files < 0:
            file.unlink()
