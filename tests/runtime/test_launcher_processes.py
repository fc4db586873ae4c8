"""Processes, run folders and followed logs, with real processes and files."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_records.event_log import EventTail, merge
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import Detected, Planned, Replaced
from castor_records.events.storing import ClockMeasured
from castor_records.run_record import RunRecord
from castor_runtime.launcher.agent_logs import AgentLogs
from castor_runtime.launcher.run_folder import RunFolder, newest_run, trainer_of
from castor_runtime.processes import (
    descendants,
    is_alive,
    kill_tree,
    started_before,
)

# Three levels; the last line of each is its child's number, passed up.
FAMILY = """
import os, sys, time
def level(n):
    if n:
        r, w = os.pipe()
        if os.fork() == 0:
            level(n - 1)
        time.sleep(60)
    else:
        print("up", flush=True)
        time.sleep(60)
level(2)
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"still not {what}"
        time.sleep(0.005)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)


def test_a_tree_of_processes_is_killed_whole(family: subprocess.Popen[str]) -> None:
    child, grandchild = descendants(family.pid)
    assert descendants(child) == [grandchild]
    assert all(is_alive(pid) for pid in (family.pid, child, grandchild))
    os.kill(child, signal.SIGSTOP)
    assert set(kill_tree(family.pid)) == {family.pid, child, grandchild}
    wait_until(lambda: not is_alive(family.pid) and not is_alive(grandchild), "dead")
    assert is_alive(family.pid) is False, "a zombie is dead"
    assert descendants(family.pid) == []
    assert kill_tree(2**22 - 1) == []


def test_a_number_that_was_given_away_again_is_told_by_its_age() -> None:
    assert started_before(os.getpid(), time.time())
    assert not started_before(os.getpid(), time.time() - 10 * 365 * 86400)
    assert not started_before(0, time.time())
    assert not is_alive(-1)


def record(folder: RunFolder, name: str, **fields: object) -> None:
    document = {
        "name": name,
        "incarnation": "1",
        "pid": os.getpid(),
        "fork_server_pid": None,
        "trainers": {"0": os.getpid()},
        "generation": 1,
        "machine": 0,
        "segments": {"0": f"castor-j-{name}-r0"},
        "control": "",
    }
    folder.agent(name).mkdir(parents=True, exist_ok=True)
    (folder.agent(name) / "agent.json").write_text(json.dumps(document | fields))


def test_a_run_folder_is_prepared_once_and_foreign_files_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare(overwrite=False)
    folder.write_secret()
    assert stat.S_IMODE(folder.secret_file.stat().st_mode) == 0o600
    assert len(bytes.fromhex(folder.secret_file.read_text())) == 32
    (folder.path / "checkpoints").mkdir()
    folder.write_run(RunRecord(job="j", pid=os.getpid()))
    with pytest.raises(InputError, match="a run is going on there"):
        folder.prepare(overwrite=True)
    folder.write_run(RunRecord(job="j", pid=2**22 - 1))
    assert not folder.is_live()
    folder.result_file.write_text("{}")
    with pytest.raises(InputError, match="--overwrite"):
        folder.prepare(overwrite=False)
    folder.prepare(overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["agents", "checkpoints"]
    with pytest.raises(InputError, match="not a run's"):
        folder.prepare(overwrite=True)
    with pytest.raises(InputError, match=r"no run\.json"):
        folder.run()


def test_the_newest_run_is_found_and_a_live_one_comes_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--run"):
        newest_run(tmp_path)
    written_s = time.time()
    for name, pid in (("b", os.getpid()), ("a", 2**22 - 1), ("c", 2**22 - 1)):
        folder = RunFolder(tmp_path / name)
        folder.prepare(overwrite=False)
        folder.write_run(RunRecord(job=name, pid=pid))
        written_s += 1
        os.utime(folder.run_file, (written_s, written_s))
    assert newest_run(tmp_path).path.name == "b"
    (tmp_path / "b" / "run.json").write_text(json.dumps({"job": "b", "pid": 0}))
    assert newest_run(tmp_path).path.name == "c"


def test_an_agents_record_names_only_processes_that_live(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.record("node-0") is None
    record(folder, "node-0")
    found = folder.record("node-0")
    assert found is not None
    assert found.lives
    assert trainer_of(found, 0) == os.getpid()
    assert trainer_of(found, 1) is None
    os.utime(folder.agent("node-0") / "agent.json", (0, 0))
    stale = folder.record("node-0")
    assert stale is not None
    assert not stale.lives
    assert trainer_of(stale, 0) is None
    record(folder, "node-1", segments=["castor-j-node-1-r3"], pid=2**22 - 1)
    (folder.agent("node-2")).mkdir()
    (folder.agent("node-2") / "agent.json").write_text('{"name": "no')
    other = folder.records()[1]
    assert [one.name for one in folder.records()] == ["node-0", "node-1"]
    assert (other.segments, other.lives) == ({3: "castor-j-node-1-r3"}, False)


def test_what_agents_tell_is_shown_in_order_although_their_clocks_differ(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logs = AgentLogs(folder)

    def tell(name: str, at_s: int, event: Event) -> None:
        folder.agent(name).mkdir(parents=True, exist_ok=True)
        with (folder.agent(name) / "events.jsonl").open("a") as file:
            file.write(Entry(at_s * 10**9, event).to_line() + "\n")

    def shown() -> list[tuple[int, int | None]]:
        told = of_kind(logs.read(), Replaced)
        return [(one.time_ns // 10**9, one.event.machine) for one in told]

    tell("a", 4, Replaced(machine=2))
    ahead = ClockMeasured(agent="b", reference="a", offset_ns=-(5 * 10**9), uncertainty_ns=9)
    tell("b", 7, ahead)
    tell("b", 8, Replaced(machine=1))
    assert shown() == [(3, 1), (4, 2)]
    tell("a", 6, Replaced(machine=4))  # what was measured holds for what comes later, too
    tell("b", 10, Replaced(machine=3))
    assert shown() == [(5, 3), (6, 4)]


def test_a_log_is_followed_line_by_line_past_torn_ones(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    tail = EventTail(log)
    assert tail.read() == []
    first = Entry(5, Detected(cause="ä"))
    second = Entry(9, Replaced(machine=1))
    data = (first.to_line() + "\n").encode()
    with log.open("ab", buffering=0) as file:
        for index in range(len(data)):
            file.write(data[index : index + 1])
            assert tail.read() == ([first] if index == len(data) - 1 else [])
        # A killed agent's half line, and the next life's first event on the same line.
        file.write(b'{"schema":1,"time_ns"' + data + (second.to_line() + "\n\n").encode())
    assert tail.read() == [second]
    assert tail.torn == 1
    other = tmp_path / "other.jsonl"
    third = Entry(7, Planned(iteration=3, tier="peer"))
    other.write_text(third.to_line() + "\n" + '{"schema":1,"time_ns":1,"kind":"unknown"}\n')
    assert merge([log, other, tmp_path / "none"]) == [first, third, second]
