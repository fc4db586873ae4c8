"""The journals of all agents' lives in one explored run, as the runtime's agents write theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from castor_policy.journal.recorder import Recorder


class Lines:
    """Keeps a journal's lines in memory."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    is_full = False

    def append(self, line: str) -> None:
        """Take a line, without its end."""
        self.lines.append(line)

    def begin_anew(self, line: str) -> None:
        """Put what came before away, and begin with this line."""
        self.lines = [line]


class Journals:
    """The journals of one explored run."""

    def __init__(self) -> None:
        self._lives: list[tuple[str, str, Recorder, Lines]] = []

    def of(self, agent: str, incarnation: str, time_ns: Callable[[], int]) -> Recorder:
        """Return what writes the journal of one life.

        Args:
            agent: its name.
            incarnation: of the life.
            time_ns: gives the simulated time.
        """
        lines = Lines()
        recorder = Recorder(lines, time_ns)
        self._lives.append((agent, incarnation, recorder, lines))
        return recorder

    def lines(self) -> list[list[str]]:
        """Return the lines of every life that took something in, in the order of their births."""
        for _, _, recorder, _ in self._lives:
            recorder.flush()
        return [kept.lines for *_, kept in self._lives if kept.lines]

    def write(self, folder: Path) -> None:
        """Write them as they lie in the folder of a real run."""
        for agent, incarnation, recorder, kept in self._lives:
            recorder.flush()
            if kept.lines:
                # The number of the life; the name is the folder's.
                file = folder / "agents" / agent / f"journal-{incarnation.rpartition('.')[2]}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(f"{line}\n" for line in kept.lines), encoding="utf-8")
