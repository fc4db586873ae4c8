"""Events of hosts whose clocks differ are put in the order in which they happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_records.account import TEXT_BYTES, Account
from castor_records.clocks import Clocks, Log, in_order, told
from castor_records.event_log import merge
from castor_records.events.event import Entry
from castor_records.events.failures import Detected
from castor_records.events.storing import ClockMeasured, RootElected
from castor_records.events.training import CheckpointCompleted, IterationEnded
from castor_records.history import History
from castor_records.recoveries import recoveries

S = 1_000_000_000


def elected(at_s: float, agent: str) -> Entry[RootElected]:
    return Entry(round(at_s * S), RootElected(agent=agent, term=1))


def measured(
    at_s: float, agent: str, offset_s: float, reference: str = "a", uncertainty_s: float = 0.001
) -> Entry[ClockMeasured]:
    return Entry(
        round(at_s * S),
        ClockMeasured(
            agent=agent,
            reference=reference,
            offset_ns=round(offset_s * S),
            uncertainty_ns=round(uncertainty_s * S),
        ),
    )


def names(entries: list[Entry[object]]) -> list[str]:
    return [e.event.agent for e in entries if isinstance(e.event, RootElected)]


def test_clocks_five_seconds_apart_do_not_change_the_order() -> None:
    # b's clock is 5 s ahead, so that what it does first comes last by its own word.
    a = [elected(2.0, "second"), elected(4.0, "fourth")]
    b = [elected(6.0, "first"), measured(7.0, "b", -5.0), elected(8.0, "third")]
    assert names(in_order([Log("a", a), Log("b", b)])) == ["first", "second", "third", "fourth"]
    assert names(in_order([Log("a", a), Log("", b)])) == ["second", "fourth", "first", "third"]


def test_a_clock_that_cannot_be_told_apart_is_left_as_it_is() -> None:
    b = [elected(1.0, "b"), measured(1.0, "b", 0.0008)]
    (found, _) = in_order([Log("a", []), Log("b", b)])
    assert found.time_ns == S
    offset = Clocks(b).offset("b", S)
    assert offset is not None
    assert (offset.offset_ns, offset.uncertainty_ns, offset.reference) == (0, S // 1000, "a")


def test_a_clock_that_was_set_meanwhile_is_corrected_by_the_nearest_measurement() -> None:
    clocks = Clocks([measured(10, "b", -5.0), measured(20, "b", 1.0)])
    assert [clocks.corrected("b", elected(t, "x")).time_ns // S for t in (9, 14, 16, 90)] == [
        4,
        9,
        17,
        91,
    ]


def test_measurements_lead_over_others_where_machine_0_has_changed() -> None:
    # First compared with a, then, a being lost, with b; c has seen both, d only b.
    found = [
        measured(1, "b", 2.0),
        measured(1, "c", 3.0),
        measured(9, "c", 1.0, "b"),
        measured(9, "d", -4.0, "b"),
        measured(9, "e", 5.0),
        measured(9, "a", -7.0, "z"),
    ]
    clocks = Clocks(found)
    assert clocks.reference == "a"
    offsets = {name: clocks.offset(name, 9 * S) for name in "abcdez"}
    assert {name: one and one.offset_ns / S for name, one in offsets.items()} == {
        "a": 0.0,
        "b": 2.0,
        "c": 3.0,
        "d": -2.0,
        "e": 5.0,
        "z": 7.0,
    }
    assert clocks.offset("nobody", 0) is None


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=30),
    st.lists(st.integers(-(10**7), 10**7), min_size=4, max_size=4),
)
def test_the_order_is_that_of_one_clock(happened: list[tuple[int, int]], ahead: list[int]) -> None:
    """Whatever the clocks show, measurements that are exact restore the order."""
    ahead[0] = 0
    logs = []
    for host in range(4):
        own = [Entry((t + ahead[host]) * 1000, RootElected(agent=f"{t:07}", term=host))
               for h, t in happened if h == host]  # fmt: skip
        offset_s = -ahead[host] * 1000 / S
        clock = measured(0, str(host), offset_s, "0", 0.0) if host else None
        logs.append(Log(str(host), [*own, *([clock] if clock else [])]))
    found = names([entry for _, entry in told(logs)])
    assert found == sorted(found)


def test_logs_in_files_are_merged_by_corrected_times(tmp_path: Path) -> None:
    logs = {
        "a": [elected(2.0, "second")],
        "b": [elected(6.0, "first"), measured(7.0, "b", -5.0)],
    }
    paths = []
    for name, entries in logs.items():
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(entry.to_line() + "\n" for entry in entries))
    merged = merge(paths)
    assert names(merged) == ["first", "second"]
    # A merged log is in order already, and is not corrected again.
    whole = tmp_path / "merged"
    whole.write_text("".join(entry.to_line() + "\n" for entry in merged))
    assert merge([whole]) == merged


def ended(at_s: float, iteration: int, generation: int = 1, rank: int = 0) -> Entry[IterationEnded]:
    return Entry(
        round(at_s * S), IterationEnded(iteration=iteration, generation=generation, rank=rank)
    )


def test_an_account_tells_the_same_recoveries_as_the_whole_log(tmp_path: Path) -> None:
    detected = Detected(generation=2, machine=1, agent="b", cause="its lease expired")
    entries = [*(ended(t, t) for t in range(1, 50)), Entry(60 * S, detected)]
    entries += [ended(t, t - 20, generation=2) for t in range(70, 90)]
    often = CheckpointCompleted(iteration=3, generation=1, rank=0)
    log = tmp_path / "events.jsonl"
    lines = [entry.to_line() for entry in [*entries, Entry(S, often)]]
    log.write_text("\n".join([*lines, '{"schema":1,"ki']))
    kept = History.of_file(log, log.stat().st_size, 1 << 20).entries
    assert len(kept) == 5
    account = Account(agent="a", run="r", host="h", folder="/f", entries=kept, final={"x": 1})
    read = Account.of_text(account.to_text())
    assert (read.agent, read.host, read.folder, read.final) == ("a", "h", "/f", {"x": 1})
    assert recoveries(read.entries) == recoveries(entries)
    assert History.of_file(log, 0, 1 << 20).entries == []
    assert History.of_file(tmp_path / "none", 10, 10).entries == []


def test_an_account_that_would_be_too_long_tells_of_the_newest() -> None:
    entries = [elected(t, f"agent-{t * 7919 % 10007}") for t in range(11_000)]
    text = Account(agent="a", run="r", entries=entries).to_text()
    read = Account.of_text(text)
    assert len(text) <= TEXT_BYTES
    assert read.left_out + len(read.entries) == len(entries)
    assert read.entries[-1] == entries[-1]


@pytest.mark.parametrize("text", ["", "!", "AAAA", "eJwDAAAAAAE=", "eJyrrgUAAXUA+Q=="])
def test_what_is_no_account_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"account|Expecting"):
        Account.of_text(text)
