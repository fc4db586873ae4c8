"""The file of a journal: bounded, written beside training, and ended by what goes wrong with it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from castor_policy.agents.effects import Log
from castor_policy.agents.events import StoreLost, StoreTrouble, Tick
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.worker import Worker
from castor_policy.journal.replay import replay
from castor_runtime.agent import journal_file
from castor_runtime.agent.journal_file import JournalFile, forget_earlier

SPEC = JobSpec("job", 2, 1, "group", ((0, 1), (1, 0)), "train.py")


def life_with(journal: JournalFile) -> AgentLife:
    worker = Worker(SPEC, "a", "a1", "host:1", False, 0.0)
    return AgentLife(worker, lambda: Tenure(None, None), journal=journal)


def trouble(life: AgentLife, number: int) -> None:
    assert life.obey(StoreTrouble("space", f"reason {number}"), number / 4) != []


def test_a_life_writes_its_own_file(tmp_path: Path) -> None:
    said: list[str] = []
    journal = JournalFile(tmp_path, "abc", said.append)
    life = life_with(journal)
    assert list(tmp_path.iterdir()) == []  # until it takes something in its name may be another's
    trouble(life, 1)
    life.obey(Tick(), 1.0)
    journal.close()
    (told,) = replay((tmp_path / "journal-abc.jsonl").read_text().splitlines())
    assert (told.parting, told.events["worker"], told.ticks["worker"]) == (None, 1, 1)
    assert said == []


def test_it_takes_two_files_and_no_more(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path, "abc", print, file_bytes=5000)
    life = life_with(journal)
    for number in range(200):
        trouble(life, number)
    journal.close()
    files = [tmp_path / "journal-abc.1.jsonl", tmp_path / "journal-abc.jsonl"]
    assert sorted(tmp_path.iterdir()) == files
    assert all(file.stat().st_size < 10_000 for file in files)
    assert files[0].stat().st_size > 5000  # and no shorter than it has to be
    for file in files:
        (told,) = replay(file.read_text().splitlines())
        assert told.parting is None
        assert told.header.worker is not None


def test_a_disk_that_takes_nothing_ends_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    journal = JournalFile(tmp_path, "abc", said.append)
    life = life_with(journal)
    monkeypatch.setattr(os, "write", full)
    for number in range(100):
        trouble(life, number)
    journal.close()
    path = tmp_path / "journal-abc.jsonl"
    end = f"the agent's journal ends here, training goes on: {path}: No space left on device"
    assert said == [end]


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs_now, comes_back = threading.Event(), threading.Event()

    def hangs(*_: object) -> int:
        hangs_now.set()
        comes_back.wait()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_file, "WAITING_LINES", 5)
    monkeypatch.setattr(journal_file, "_CLOSE_S", 0.01)
    monkeypatch.setattr(os, "write", hangs)
    said: list[str] = []
    journal = JournalFile(tmp_path, "abc", said.append)
    life = life_with(journal)
    trouble(life, 0)
    hangs_now.wait()
    for number in range(1, 20):
        trouble(life, number)
    journal.close()
    comes_back.set()
    assert journal._writer is not None
    journal._writer.join()
    assert len(said) == 1
    assert "the disk does not keep up" in said[0]


def test_what_no_journal_knows_ends_it_and_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []
    journal = JournalFile(tmp_path, "abc", said.append)
    life = life_with(journal)
    life.worker._contact.lost = lambda: [Log(object())]  # type: ignore[arg-type, method-assign]
    for number in range(2):
        life.obey(StoreLost(), float(number))
    journal.close()
    assert len(said) == 1
    assert "no journal knows a builtins.object" in said[0]


def test_of_earlier_lives_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / f"journal-{number}.jsonl"
        file.write_bytes(b"x" * 10)
        os.utime(file, ns=(number, number))
    (tmp_path / "events.jsonl").touch()

    def left() -> list[str]:
        return sorted(file.name for file in tmp_path.glob("journal-*"))

    forget_earlier(tmp_path, most_files=4, most_bytes=1000)
    assert left() == [f"journal-{number}.jsonl" for number in (2, 3, 4, 5)]
    forget_earlier(tmp_path, most_files=4, most_bytes=25)
    assert left() == ["journal-4.jsonl", "journal-5.jsonl"]
    assert (tmp_path / "events.jsonl").exists()
