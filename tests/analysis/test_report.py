"""The report of a run: where its time went, what storage had cost, and the page for a person."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_analysis.report import Story, read_story, report_page, storage_bill
from castor_analysis.report.page import Heading
from castor_analysis.report.storage_bill import GIVEN, MEASURED, StorageBill
from castor_configs.errors import InputError
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Resumed,
    Retrieved,
    RunStarted,
    TrainerStarted,
)
from castor_records.events.storing import Persisted
from castor_records.events.training import CheckpointCompleted, IterationEnded, Warned
from castor_records.run_record import RunRecord

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PART_BYTES = 5_000_000_000 // 8
"""Two of them take 10 s at 1 Gbit/s."""
HEADING = Heading(job="gpt <2>", outcome="finished", reason="", origin="from here")
EMPTY = (
    "<h2>Iterations</h2>\n<p>No iteration ended.",
    "Nothing failed in this run.",
    "No checkpoint was completed.",
    "Not reckoned: fewer than two iterations ended",
)


class Log:
    """Builds a log of two machines; times are seconds."""

    def __init__(self) -> None:
        self.entries: list[Entry[Event]] = []
        self.add(0.0, RunStarted(machines=2, ranks=2, replicas=2, placement="group"))

    def add(self, at_s: float, event: Event) -> None:
        self.entries.append(Entry(round(at_s * 1e9), event))

    def begin(self, at_s: float, generation: int, iteration: int, source: str = "peer:b") -> None:
        self.add(at_s - 2.0, TrainerStarted(generation=generation, rank=0, pid=7))
        for rank in (0, 1):
            self.add(
                at_s - 1.0,
                Retrieved(
                    generation=generation,
                    machine=rank,
                    rank=rank,
                    own=True,
                    iteration=iteration,
                    source=source,
                    bytes=1,
                    seconds=0.5,
                ),
            )
            self.add(at_s, Resumed(generation=generation, rank=rank, iteration=iteration))

    def train(self, from_s: float, generation: int, first: int, last: int) -> float:
        """Iterations of 1 s, each waiting 0.1 s for the checkpoint before it."""
        for iteration in range(first, last + 1):
            from_s += 1.0
            for rank in (0, 1):
                who = {"generation": generation, "rank": rank, "iteration": iteration}
                self.add(from_s, IterationEnded(**who, seconds=1.0))
                self.add(
                    from_s + 0.2,
                    CheckpointCompleted(**who, seconds=0.2, blocked_s=0.1, sent_bytes=PART_BYTES),
                )
        return from_s

    def fail(self, at_s: float, generation: int, plan_s: float) -> None:
        self.add(at_s, Failed(machine=1, failure="hardware", target="machine:1"))
        self.add(
            at_s + 3.0,
            Detected(
                generation=generation, failure="hardware", how="lease", machine=1, cause="gone"
            ),
        )
        self.add(plan_s, Planned(generation=generation, iteration=0, tier="peer"))


@pytest.fixture(scope="module")
def failed() -> Log:
    """100 iterations; half a second into the 51st a machine is lost, and 10 s later all train."""
    log = Log()
    log.begin(5.0, 1, 0, "scratch")
    log.train(5.0, 1, 1, 50)
    log.fail(55.5, 2, 59.0)
    log.begin(65.5, 2, 48)
    log.train(65.5, 2, 49, 100)
    log.add(70.0, Warned(generation=2, rank=0, message="a <b>buffer</b> is left out"))
    for machine in (0, 1):
        log.add(90.0, Persisted(machine=machine, iteration=60, generation=2, seconds=10.0))
    return log


def test_each_second_since_training_began_has_its_place(failed: Log) -> None:
    story = read_story(failed.entries)
    account = story.account
    assert account.wall_s == pytest.approx(50 + 0.5 + 10 + 52)
    # The very first iteration waits for no checkpoint; those run again are booked as such.
    assert account.stall_s == pytest.approx(99 * 0.1)
    assert account.new_s == pytest.approx(100 - account.stall_s)
    assert (account.hardware_s, account.software_s) == (pytest.approx(10.0), 0.0)
    assert (account.cut_off_s, account.redone_s) == (pytest.approx(0.5), pytest.approx(2.0))
    assert account.other_s == pytest.approx(0.0, abs=1e-6)
    assert account.ratio == pytest.approx(account.new_s / 112.5)
    assert story.checkpoint_bytes == 2 * PART_BYTES
    assert story.iteration_s == 1.0
    assert (story.reached, story.checkpoints.persisted) == (100, 1)


def test_storage_had_cost_what_it_had_not_got_and_the_time_to_read_it(failed: Log) -> None:
    story = read_story(failed.entries)
    bill = storage_bill(story)
    assert isinstance(bill, StorageBill)
    assert bill.rate_from == MEASURED
    assert bill.storage_bps == 1_000_000_000
    assert bill.iteration_s == pytest.approx(0.9)
    often = next(one for one in bill.alternatives if one.name.startswith("as often"))
    # A checkpoint takes 10 s, which is 12 iterations of 0.9 s; torch.save stops each for 0.67 s.
    assert often.every == 12
    # Those of iterations 12, 24 and 36 are whole after 50.5 s; that of 48 has 5 s to go.
    save_s = PART_BYTES * 8 / 7.43e9
    assert often.redone_s == pytest.approx(50.5 - 4 * save_s - 36 * 0.9, rel=1e-3)
    assert often.read_s == pytest.approx(10 + save_s, rel=1e-3)
    # The outage as it was, less the 5.5 s in which parts were fetched, and the read in their place.
    known_s = 100 * 0.9 + often.stall_s + often.redone_s + 10.0 - 5.5 + often.read_s
    assert often.wall_s == pytest.approx(known_s, abs=0.01)
    assert often.ratio < (story.account.ratio or 0)
    twin = bill.twin
    assert twin is not None
    assert twin.wall_s == pytest.approx(100 * 0.9 + twin.stall_s + twin.redone_s + 10.0)
    assert twin.ratio == pytest.approx(story.account.ratio or 0, abs=0.02)
    slower = storage_bill(story, 100_000_000)
    assert isinstance(slower, StorageBill)
    assert slower.rate_from == GIVEN
    assert slower.alternatives[1].wall_s > often.wall_s


def test_the_log_of_a_lost_machine_is_not_missed(failed: Log) -> None:
    whole = read_story(failed.entries)
    kept = [
        entry
        for entry in failed.entries
        if not (
            isinstance(entry.event, IterationEnded | CheckpointCompleted)
            and (entry.event.rank, entry.event.generation) == (0, 1)
        )
    ]
    story = read_story(kept)
    assert story.account.new_s == pytest.approx(whole.account.new_s)
    assert story.account.other_s == pytest.approx(0.0, abs=1e-6)
    # Where nobody tells of a generation, that is no iteration that was cut off.
    story = read_story(
        [e for e in kept if not (isinstance(e.event, IterationEnded) and e.event.generation == 1)]
    )
    assert story.account.cut_off_s == 0.0
    assert story.account.other_s > 45.0


class Page(HTMLParser):
    """Checks that tags are closed, and gathers text and what is fetched from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(story: Story, **changes: str) -> Page:
    page = report_page(replace(HEADING, **changes), story, storage_bill(story))
    found = Page(page)
    assert found.fetched == []
    assert "url(" not in page
    assert "@import" not in page
    return found


def test_the_page_says_what_each_number_is_and_needs_nothing_else(failed: Log) -> None:
    text = page_of(read_story(failed.entries)).text
    for said in (
        "gpt <2>",
        "It finished.",
        "100iterations in 1 min 52 s since training began",
        "1recovery; the longest took 11 s",
        "1. machine lost, took 11 s",
        "resumed from iteration 48: 2 ranks from a peer's memory; 2 iterations run again.",
        "Counted from the failure, whose moment is known.",
        "Castor, measured",
        "Storage gives all machines together 1 Gbit/s (as this run wrote its persistent",
        "a <b>buffer</b> is left out",
        "from here",
    ):
        assert said in text, said


@pytest.mark.parametrize("name", ["recovery-machine", "recovery-storage"])
def test_a_real_run_is_told(name: str) -> None:
    story = read_story(merge([IMAGES / f"{name}.events.jsonl"]))
    assert story.recoveries
    assert story.account.other_s < 0.1 * story.account.wall_s
    assert "1. " in page_of(story).text


def test_runs_without_failure_without_iterations_or_end_read_well() -> None:
    log = Log()
    text = page_of(read_story(log.entries), outcome="failed", reason="no machine came").text
    assert "It was given up. no machine came" in text
    assert "Training never began." in text
    assert all(re.sub("<.*?>", "", said) in text for said in EMPTY)
    log.begin(5.0, 1, 0, "scratch")
    log.train(5.0, 1, 1, 20)
    text = page_of(read_story(log.entries)).text
    assert "Nothing failed in this run." in text
    assert "at Daly's interval" not in text
    log.fail(25.5, 2, 29.0)
    story = read_story(log.entries)
    text = page_of(story, outcome="running").text
    assert "1. machine lost, it did not end" in text
    assert story.account.hardware_s == pytest.approx(3.5)
    with pytest.raises(ValueError, match="simulated"):
        read_story([Entry(0, RunStarted(positions=2))])


def test_ten_thousand_iterations_are_drawn_by_columns(failed: Log) -> None:
    story = read_story(failed.entries)
    one = story.iterations[0]
    many = tuple(replace(one, number=i, end_ns=10**7 * i + 5 * 10**9) for i in range(10_000))
    page = report_page(HEADING, replace(story, iterations=many), "not now")
    assert len(page) < 400_000
    assert Page(page).open == []


def test_the_command_writes_a_page_and_none_over_what_is_not_its_own(
    failed: Log, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    record = RunRecord(job="gpt", run="ab", nodes=2, ranks_per_node=1, replicas=((0, 1), (1, 0)))
    (run / "run.json").write_text(json.dumps(record.to_json()))
    log = "".join(entry.to_line() + "\n" for entry in failed.entries)
    (run / "launcher.jsonl").write_text(log)

    def call(*arguments: str, path: Path = run) -> str:
        result = CliRunner().invoke(app, ["report", str(path), *arguments])
        if isinstance(result.exception, InputError):
            return str(result.exception)
        assert result.exit_code == 0, result.output
        return result.stderr

    assert call() == f"wrote {run / 'report.html'}\n"
    assert "It has not ended: this is how far it is." in (run / "report.html").read_text()
    (run / "events.jsonl").write_text(log)
    (run / "result.json").write_text(json.dumps({"outcome": "interrupted", "reason": "Ctrl-C"}))
    assert call("--storage", "100Mbps").startswith("wrote ")
    page = (run / "report.html").read_text()
    assert "It was interrupted.</b> Ctrl-C" in page
    assert "100 Mbit/s (as it was given)" in page
    mine = tmp_path / "mine.html"
    mine.write_text("my own")
    assert "castor did not write it" in call("-o", str(mine))
    assert "expected .html" in call("-o", str(tmp_path / "x.pdf"))
    assert "--storage" in call("--storage", "fast")
    # Copies of agents' logs, without a run folder around them.
    half = len(failed.entries) // 2
    logs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for log_file, part in zip(logs, (failed.entries[1:half], failed.entries[half:]), strict=True):
        log_file.write_text("".join(entry.to_line() + "\n" for entry in part))
    assert "say where the page goes" in call(str(logs[1]), path=logs[0])
    assert call(str(logs[1]), "-o", str(tmp_path / "two.html"), path=logs[0]).startswith("wrote ")
    text = Page((tmp_path / "two.html").read_text()).text
    assert "How it ended is not in these logs." in text
    assert "0 machines, 2 ranks.\n" in text
    assert "A run, by 2 event logs" in text
    assert "add the log of the agent that made the job" in text
    assert "go together" in call("--store", "etcd://h:1")
    assert "give one" in call("--store", "etcd://h:1", "--job", "j")
