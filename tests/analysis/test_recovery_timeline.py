"""A real recovery read from event logs: made-up ones with known answers, and a real run's."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from castor.app import app
from castor_analysis.pictures.chrome_trace import to_chrome_trace
from castor_analysis.pictures.run_trace import run_to_chrome_trace
from castor_analysis.recovery.moments import moments
from castor_analysis.recovery.picture import draw_recovery, headline
from castor_analysis.recovery.timeline import (
    Doing,
    RecoveryTimeline,
    choose,
    in_short,
    read_recoveries,
)
from castor_analysis.timeline import LOST_PROGRESS, TRAINING, read_timeline
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Redundant,
    Replaced,
    Resumed,
    Retrieved,
    RunStarted,
    TrainerStarted,
)
from castor_records.events.line import parse_line
from castor_records.events.storing import StoreLost
from castor_records.events.training import CheckpointCompleted, IterationEnded
from castor_records.phases import MEASURED
from castor_records.recoveries import recoveries

MS = 1_000_000
REAL_LOG = Path(__file__).parents[2] / "docs" / "images" / "recovery-machine.events.jsonl"
"""The log from which docs/recovery.md's first picture is drawn: machine 2 lost, then rank 1."""


class Log:
    """A run of `machines` machines that loses machine `victim`, written as the agents would.

    Durations are milliseconds. Every iteration takes 100 ms; the failure comes 40 ms into the
    one after `iterations`.
    """

    def __init__(self, machines: int, per_machine: int, victim: int, iterations: int) -> None:
        self.machines, self.per_machine = machines, per_machine
        self.ranks = range(machines * per_machine)
        self.victim, self.iterations = victim, iterations
        self.events: list[Entry[Event]] = []
        self.now = 0

    def add(self, kind: type[Event], **fields: Any) -> None:
        self.events.append(Entry(self.now * MS, kind.of_fields(fields)))

    def start(self) -> None:
        ranks = len(self.ranks)
        self.add(
            RunStarted, machines=self.machines, ranks=ranks, replicas=2,
            placement="group",
        )  # fmt: skip
        self.now = 1000
        self.load(1, 0, "scratch")
        self.iterate(1, 0, self.iterations)

    def load(self, generation: int, iteration: int, tier: str, fork: int = 20) -> None:
        self.add(Planned, generation=generation, iteration=iteration, tier=tier)
        self.now += 1
        for rank in self.ranks:
            machine = rank // self.per_machine
            source = tier
            if tier == "peer":
                lost = machine == self.victim
                source = f"peer:node-{self.victim ^ 1}" if lost else "own_memory"
            self.add(
                Retrieved, generation=generation, machine=machine, rank=rank, own=True,
                iteration=iteration, source=source, bytes=7 if "peer" in source else 0,
                seconds=0.001 if "peer" in source else 0.0,
            )  # fmt: skip
        for machine in range(self.machines):
            self.add(Redundant, generation=generation, machine=machine)
        self.now += fork
        for rank in self.ranks:
            self.add(TrainerStarted, generation=generation, rank=rank, pid=rank + 100)
        self.now += 200
        for rank in self.ranks:
            self.add(
                Resumed, generation=generation, rank=rank, iteration=iteration,
                wait=0.002, verify=0.003, restore=0.005,
            )  # fmt: skip

    def iterate(self, generation: int, done: int, upto: int) -> None:
        for iteration in range(done + 1, upto + 1):
            self.now += 100
            for rank in self.ranks:
                self.add(
                    IterationEnded, generation=generation, rank=rank,
                    iteration=iteration, loss=1.0, seconds=0.1,
                )  # fmt: skip

    def lose(self, detection: int, replacement: int, planning: int, kept: int) -> None:
        self.now += 40
        self.add(
            Failed, failure="hardware", target=f"machine:{self.victim}",
            agent=f"node-{self.victim}", machine=self.victim, rank=None,
        )  # fmt: skip
        self.now += detection
        self.add(
            Detected, generation=2, failure="hardware", how="lease",
            machine=self.victim, agent=f"node-{self.victim}", cause="the lease expired",
        )  # fmt: skip
        self.now += replacement
        self.add(Replaced, generation=2, machine=self.victim, agent="spare-0")
        self.now += planning
        # What shows later of the same failure does not move the moment at which it was known.
        self.add(
            Detected, generation=2, failure="software", how="exit",
            machine=self.victim ^ 1, agent="", cause="a rank exited",
        )  # fmt: skip
        self.load(2, kept, "peer")
        self.iterate(2, kept, self.iterations + 3)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Log, dict[str, float]]:
    machines = draw(st.sampled_from([2, 4, 18]))
    log = Log(
        machines,
        draw(st.integers(1, 3)),
        victim=draw(st.integers(0, machines - 1)),
        iterations=draw(st.integers(2, 6)),
    )
    log.start()
    detection, replacement, planning = (draw(st.integers(1, 6000)) for _ in range(3))
    log.lose(detection, replacement, planning, log.iterations - draw(st.integers(0, 1)))
    known = {
        "detection": detection / 1000,
        "replacement": replacement / 1000,
        "planning": planning / 1000,
        "retrieval": 0.001,
        "restart": 0.220,
        "first_iteration": 0.1,
    }
    return log, known


@given(runs())
@settings(max_examples=40)
def test_parts_are_those_that_happened_and_leave_no_gap(run: tuple[Log, dict[str, float]]) -> None:
    log, known = run
    (timeline,) = read_recoveries(log.events)
    lasted = {p.phase: round((p.end_ns - p.start_ns) / 1e9, 9) for p in timeline.spans}
    assert lasted == known
    edges = [timeline.start_ns, *(p.end_ns for p in timeline.spans)]
    assert [p.start_ns for p in timeline.spans] == edges[:-1]
    assert timeline.end_ns == edges[-1]
    failure = next(e for e in log.events if isinstance(e.event, Failed))
    assert timeline.start_ns == failure.time_ns


@given(runs())
@settings(max_examples=40)
def test_trainers_do_one_thing_at_a_time(run: tuple[Log, dict[str, float]]) -> None:
    log, _ = run
    (timeline,) = read_recoveries(log.events)
    kept = timeline.recovery.iteration
    assert kept is not None
    trainers = [trainer for machine in timeline.machines for trainer in machine.trainers]
    assert [trainer.rank for trainer in trainers] == list(log.ranks)
    for trainer in trainers:
        assert all(s.start_ns <= s.end_ns for s in trainer.stretches)
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(trainer.stretches))
        redone = {s.iteration for s in trainer.stretches if s.doing == Doing.REDONE}
        assert redone == set(range(kept + 1, log.iterations + 1))
        (cut_off,) = [s for s in trainer.stretches if s.doing == Doing.CUT_OFF]
        failed = trainer.rank // log.per_machine == log.victim
        until_ns = timeline.start_ns if failed else timeline.spans[0].end_ns
        assert cut_off.end_ns == until_ns
        doings = [s.doing for s in trainer.stretches if s.start_ns >= cut_off.end_ns]
        assert doings[:4] == [Doing.STARTING, Doing.WAITING, Doing.LOADING, Doing.ITERATION]


@given(runs())
@settings(max_examples=20)
def test_what_was_fetched_came_from_the_holder(run: tuple[Log, dict[str, float]]) -> None:
    log, _ = run
    (timeline,) = read_recoveries(log.events)
    fetched = [one for one in timeline.retrievals if one.source.startswith("peer")]
    assert [one.machine for one in fetched] == [log.victim] * log.per_machine
    assert {one.holder for one in fetched} == {log.victim ^ 1}
    assert {one.size_bytes for one in fetched} == {7}
    (lost,) = [machine for machine in timeline.machines if machine.failed]
    assert (lost.machine, lost.agents) == (log.victim, (f"node-{log.victim}", "spare-0"))
    redundant = [e for e in log.events if isinstance(e.event, Redundant)]
    assert timeline.redundant_ns == redundant[-1].time_ns


@given(runs())
@settings(max_examples=20)
def test_one_reader_serves_simulated_and_real_logs(run: tuple[Log, dict[str, float]]) -> None:
    log, known = run
    (measured,) = read_recoveries(log.events)
    timeline = read_timeline(log.events)
    (recovery,) = timeline.outages
    assert [failure.event.machine for failure in recovery.failures] == [log.victim]
    assert recovery.start_ns == measured.start_ns
    assert recovery.tier == "peer"
    lasted = {s.phase: (s.end_ns - s.start_ns) / 1e9 for s in recovery.spans}
    assert lasted["detection"] == pytest.approx(known["detection"])
    wait_s = known["replacement"] + known["planning"]
    assert lasted["replacement_wait"] == pytest.approx(wait_s)
    assert lasted["warm_up"] == pytest.approx(known["restart"])
    # 40 ms of the iteration in flight, and 100 ms of each that had ended.
    redone = log.iterations - (recovery.iteration or 0)
    lost_ns = sum(s.end_ns - s.start_ns for s in timeline.spans if s.phase == LOST_PROGRESS)
    assert lost_ns == (40 + 100 * redone) * MS == recovery.lost_progress_ns
    assert all(a.end_ns == b.start_ns for a, b in pairwise(timeline.spans))
    assert timeline.spans[-1].phase == TRAINING
    assert timeline.iteration_ns == pytest.approx(100 * MS)
    assert timeline.iterations[-1] == (timeline.end_ns, log.iterations + 3)
    assert to_chrome_trace({"run": log.events})["traceEvents"]


def test_what_came_from_storage_is_redundant_with_the_first_checkpoint_of_every_rank() -> None:
    log = merge([REAL_LOG.with_name("recovery-storage.events.jsonl")])
    (timeline,) = [one for one in read_recoveries(log) if one.recovery.tier == "storage"]
    last = timeline.recovery.generation
    complete = [e for e in of_kind(log, CheckpointCompleted) if e.event.generation == last]
    first = [
        min(entry.time_ns for entry in complete if entry.event.rank == rank)
        for rank in {entry.event.rank for entry in complete}
    ]
    assert timeline.redundant_ns == max(first)


def test_a_simulated_log_has_no_ranks_to_tell_of() -> None:
    events: list[Entry[Event]] = [
        Entry(0, RunStarted(positions=4)),
        Entry(5, Failed(machine=1, failure="software")),
    ]
    with pytest.raises(ValueError, match="no log of a real run"):
        read_recoveries(events)


def test_an_attempt_that_failed_too_is_part_of_the_outage() -> None:
    log = Log(2, 1, victim=0, iterations=3)
    log.start()
    log.now += 40
    log.add(Failed, failure="software", target="rank:0", agent="node-0", machine=0, rank=0)
    for generation, cause in ((2, "rank 0 was killed by signal 9"), (3, "rank 1 exited")):
        log.now += 50
        log.add(
            Detected, generation=generation, failure="software", machine=generation - 2,
            cause=cause,
        )  # fmt: skip
        log.now += 5
        if generation == 2:
            log.add(Planned, generation=2, iteration=3, tier="own_memory")
            log.add(TrainerStarted, generation=2, rank=0, pid=1)
    log.load(3, 3, "own_memory")
    log.iterate(3, 3, 5)
    (timeline,) = read_recoveries(log.events)
    assert timeline.recovery.generations == (2, 3)
    assert timeline.recovery.seconds["interrupted"] == pytest.approx(0.055)
    starting = [s for s in timeline.machines[0].trainers[0].stretches if s.doing == Doing.STARTING]
    assert [s.end_ns - s.start_ns for s in starting] == [50 * MS, 190 * MS]
    assert choose([timeline], 2) is choose([timeline], 3) is choose([timeline], None) is timeline
    with pytest.raises(ValueError, match=r"generation 7; there are 2, 3"):
        choose([timeline], 7)
    with pytest.raises(ValueError, match="nothing failed"):
        choose([], None)


def test_training_that_does_not_go_on_is_told_as_far_as_it_came() -> None:
    log = Log(2, 1, victim=1, iterations=2)
    log.start()
    log.now += 40
    log.add(Detected, generation=2, failure="software", machine=1, cause="rank 1 exited")
    log.now += 500
    log.add(StoreLost, agent="node-0")
    (timeline,) = read_recoveries(log.events)
    assert timeline.recovery.seconds["total"] is None
    assert timeline.end_ns == log.now * MS
    assert "did not go on" in headline(timeline)
    assert read_timeline(log.events).outages[0].iteration is None
    assert moments(timeline)[0].what == "detected: rank 1 exited"


@pytest.fixture(scope="module")
def real() -> tuple[list[Entry[Event]], list[RecoveryTimeline]]:
    lines = REAL_LOG.read_text(encoding="utf-8").splitlines()
    events = [event for line in lines if (event := parse_line(line)) is not None]
    return events, read_recoveries(events)


def test_a_real_run_reads_as_its_result_does(
    real: tuple[list[Entry[Event]], list[RecoveryTimeline]],
) -> None:
    events, found = real
    assert [one.recovery for one in found] == recoveries(events)
    assert [one.recovery.kind for one in found] == ["hardware", "software"]
    for one in found:
        total_s = one.recovery.seconds["total"]
        assert total_s == pytest.approx((one.end_ns - one.start_ns) / 1e9, abs=1e-6)
        assert [p.phase for p in one.spans] == [p for p in MEASURED if one.recovery.seconds[p]]
        first_ends = {
            s.end_ns
            for machine in one.machines
            for trainer in machine.trainers
            for s in trainer.stretches
            if s.iteration == (one.recovery.iteration or 0) + 1 and s.start_ns > one.start_ns
        }
        # A microsecond: `seconds` are decimal fractions of what the log has in nanoseconds.
        assert any(abs(one.end_ns - end_ns) < 1000 for end_ns in first_ends)
    lost = found[0]
    assert {one.holder for one in lost.retrievals if one.source.startswith("peer")} == {3}


@pytest.mark.long
def test_every_format_is_drawn(
    real: tuple[list[Entry[Event]], list[RecoveryTimeline]], tmp_path: Path
) -> None:
    _, found = real
    small = Log(2, 1, victim=1, iterations=3)
    small.start()
    small.lose(100, 10, 5, 3)
    (drawn,) = read_recoveries(small.events)
    for suffix, begins in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".html", b"<!doctype html>")):
        path = tmp_path / f"one{suffix}"
        draw_recovery(drawn, path)
        assert path.read_bytes().startswith(begins)
    one, again = tmp_path / "a.svg", tmp_path / "b.svg"
    draw_recovery(found[1], one)
    draw_recovery(found[1], again)
    assert one.read_bytes() == again.read_bytes()
    assert "checks and loads its part" in one.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.bmp"):
        draw_recovery(found[0], tmp_path / "one.bmp")
    # Many machines: those that failed are shown, and the picture says how many are not.
    log = Log(18, 1, victim=17, iterations=3)
    log.start()
    log.lose(100, 10, 5, 3)
    draw_recovery(read_recoveries(log.events)[0], tmp_path / "many.svg")
    many = (tmp_path / "many.svg").read_text(encoding="utf-8")
    assert "machine 17" in many
    assert "2 machines that only waited are left out" in many


def test_perfetto_gets_every_iteration_of_every_rank(
    real: tuple[list[Entry[Event]], list[RecoveryTimeline]],
) -> None:
    events, found = real
    trace = run_to_chrome_trace(events)["traceEvents"]
    text = json.dumps(trace, allow_nan=False)
    assert json.dumps(json.loads(text)) == text
    ended = [e for e in events if isinstance(e.event, IterationEnded)]
    drawn = [e for e in trace if e["ph"] == "X" and "loss" in e.get("args", {})]
    assert len(drawn) == len(ended)
    names = {e["name"] for e in trace if e["ph"] == "X" and e["pid"] == 1}
    assert {p.phase.replace("_", " ") for one in found for p in one.spans} <= names
    assert all(e["dur"] >= 0 for e in trace if e["ph"] == "X")


def test_the_command_tells_draws_and_refuses(tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["recovery", str(REAL_LOG), "-g", "3"])
    assert told.exit_code == 0
    assert "gen 3 *" in told.stdout
    assert "killed by signal 9" in told.stdout
    picture = tmp_path / "one.svg"
    given = runner.invoke(app, ["recovery", str(REAL_LOG), "--json", "-o", str(picture)])
    document = json.loads(given.stdout)
    assert document["generation"] == 2
    assert len(document["recoveries"]) == 2
    assert picture.exists()
    perfetto = tmp_path / "run.json"
    assert runner.invoke(app, ["recovery", str(REAL_LOG), "-o", str(perfetto)]).exit_code == 0
    assert json.loads(perfetto.read_text(encoding="utf-8"))["traceEvents"]
    for arguments, said in (
        ([str(tmp_path)], "no event log"),
        ([str(REAL_LOG), "-o", "one.bmp"], ".bmp"),
        ([str(REAL_LOG), "-g", "9"], "generation 9"),
    ):
        refused = runner.invoke(app, ["recovery", *arguments])
        assert refused.exit_code != 0
        assert said in str(refused.exception)


def test_a_live_run_is_read_from_its_agents_logs(tmp_path: Path) -> None:
    lines = REAL_LOG.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "launcher.jsonl").write_text("".join(lines[::2]), encoding="utf-8")
    agent = tmp_path / "agents" / "node-0"
    agent.mkdir(parents=True)
    (agent / "events.jsonl").write_text("".join(lines[1::2]) + '{"schema":1', encoding="utf-8")
    runner = CliRunner()
    live = runner.invoke(app, ["recovery", str(tmp_path), "--json"])
    whole = runner.invoke(app, ["recovery", str(REAL_LOG), "--json"])
    assert live.exit_code == 0
    assert json.loads(live.stdout) == json.loads(whole.stdout)


def test_long_causes_are_cut_to_a_line() -> None:
    cause = "rank 1 exited: [/some/where/pair.cc:537] Read error\nand more"
    assert in_short(cause) == "rank 1 exited: Read error"
    assert len(in_short("x" * 200)) == 70
