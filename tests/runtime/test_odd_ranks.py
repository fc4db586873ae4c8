"""What a rank measures of itself, what all hear of it, and what people are told."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from castor_lab.one_process import small_job
from castor_policy.agents.plan import Phase, Plan
from castor_records.account import Account
from castor_records.events.event import Entry, Event
from castor_records.events.failures import Resumed
from castor_records.events.training import NotFinite, Slow
from castor_runtime.launcher.accounts import Accounts
from castor_runtime.launcher.event_lines import line_of
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.odd_ranks import not_finite, slow_now
from castor_runtime.launcher.status import status_document
from castor_runtime.launcher.status_view import why
from castor_runtime.metrics.tally import Tally
from castor_runtime.trainer.losses import read_loss
from castor_runtime.trainer.own_time import OwnTime, Pace
from castor_runtime.trainer.rank_words import Agreed, RankWord, heard, said, said_by
from castor_runtime.trainer.swap.gloo_inside import GlooInside
from castor_runtime.trainer.swap.replaceable_group import ReplaceableGroup

LONG = timedelta(seconds=60)
LATE_S = 0.3


def test_who_comes_late_takes_its_time_itself_and_the_other_waits() -> None:
    store, own_s = HashStore(), [0.0, 0.0]
    groups = [ReplaceableGroup("g", (0, 1), rank, LONG, GlooInside) for rank in (0, 1)]

    def train(rank: int) -> None:
        group = groups[rank]
        group.connect(store, 1, rank)
        measure = OwnTime(lambda: group.waited_ns)
        began_s = time.monotonic()
        if rank == 1:
            time.sleep(LATE_S)
        group.allreduce([torch.ones(1)]).wait()
        own_s[rank] = measure.end_iteration(time.monotonic() - began_s)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert own_s[1] >= LATE_S
    assert own_s[1] - own_s[0] > 0.5 * LATE_S
    for one in groups:
        one.abort()


class Clock:
    """Of a process that waits in collectives now and then."""

    def __init__(self) -> None:
        self.waited_ns = 0

    def __call__(self) -> int:
        return self.waited_ns


def test_waits_and_busy_sections_are_taken_off_and_the_first_iteration_does_not_count() -> None:
    clock = Clock()
    measure = OwnTime(clock)
    assert measure.end_iteration(5.0) == 5.0
    assert measure.take() == Pace(0, 0.0, 0.0)
    clock.waited_ns += 2_000_000_000
    assert measure.end_iteration(5.0) == 3.0
    with measure.others():
        time.sleep(0.05)
        clock.waited_ns += 10_000_000  # of those 0.05 s; nothing is taken off twice
    own_s = measure.end_iteration(5.0)
    assert 4.0 < own_s <= 4.951
    assert measure.take() == Pace(2, 10.0, 3.0 + own_s)
    assert measure.take() == Pace(0, 0.0, 0.0)
    measure.begin()
    measure.end_iteration(1.0)
    assert measure.take().iterations == 0


def test_all_ranks_hear_what_each_says_of_itself() -> None:
    words = [RankWord(0.5, 0.25, 0), RankWord(0.5, 0.5, 7), RankWord(0.5, 0.0, 0)]
    front = [Agreed(4, False, False, False), Agreed(5, True, False, False)]
    front.append(Agreed(4, False, False, True))
    each = [said(front[rank], words[rank], rank, 3) for rank in range(3)]
    least = torch.minimum(torch.minimum(each[0], each[1]), each[2])
    assert heard(least) == (Agreed(4, drifted=True, torn=False, hold=True), tuple(words))


@pytest.mark.parametrize(
    ("losses", "odd"),
    [
        ([], 0),
        ([None, 0.5], 0),
        ([0.5, float("nan"), float("inf")], 2),
        ([torch.tensor(float("-inf"))], 1),
    ],
)
def test_a_rank_says_which_loss_was_no_number(losses: list[object], odd: int) -> None:
    read = [(number, read_loss(loss)) for number, loss in enumerate(losses, 1)]
    assert said_by(Pace(2, 1.0, 0.5), read) == RankWord(1.0, 0.5, odd)


def slow(rank: int, generation: int = 2, *, over: bool = False) -> Slow:
    return Slow(
        generation=generation,
        rank=rank,
        machine=rank,
        iteration=40,
        over=over,
        own_s=0.9,
        others_s=0.5,
        costs_s=0.4,
        share=0.4,
        iterations=30,
        lost_s=12.0,
    )


def entries(*events: Event) -> list[Entry[Event]]:
    return [Entry(number, event) for number, event in enumerate(events)]


def test_who_is_slow_now_is_who_began_to_be_in_this_generation() -> None:
    seen = entries(slow(3), slow(1), slow(2), slow(1, over=True), slow(0, generation=1))
    assert [one.rank for one in slow_now(seen, 2)] == [2, 3]
    seen = entries(
        *(NotFinite(generation=2, rank=r, machine=r, iteration=i) for r, i in ((1, 5), (3, 9)))
    )
    assert [one.rank for one in not_finite(seen, 2)] == [3]
    assert not not_finite(seen, 3)


def said_of(event: Event) -> str:
    line = line_of(event)
    return "" if line is None else line[0]


def test_people_read_what_it_costs() -> None:
    assert said_of(slow(1)) == (
        "rank 1 of machine 1 is slow: all wait 400 ms of each iteration for it (40%); it takes "
        "900 ms of its own, the others 500 ms"
    )
    assert said_of(slow(1, over=True)).endswith("slow no more; it cost 12 s in 30 iterations")
    odd = NotFinite(generation=1, rank=2, machine=1, iteration=7)
    assert "rank 2 of machine 1: its loss in iteration 7 is not finite" in said_of(odd)


def test_the_metric_is_what_the_slowest_rank_here_costs_while_it_is_named() -> None:
    tally = Tally(small_job())
    for event in (slow(1), replace(slow(2), costs_s=0.1)):
        tally.take(event, 0.0)
    assert tally.read(0.0).slow_s == {1: 0.4, 2: 0.1}
    tally.take(slow(1, over=True), 1.0)
    assert tally.read(1.0).slow_s == {2: 0.1}
    tally.take(Resumed(generation=2, rank=2, iteration=3), 2.0)
    assert not tally.read(2.0).slow_s, "a generation begins without a slow rank"


def test_status_says_who_is_slow_and_who_lost_its_numbers() -> None:
    spec = small_job()
    plan = Plan(2, 1, Phase.LOAD, tuple("abcd"), tuple("wxyz"))
    odd = NotFinite(generation=2, rank=2, machine=2, iteration=7)
    account = Account(agent="b", run=spec.run, entries=entries(slow(1), odd))
    view = JobView(spec.job, spec, plan)
    document = status_document(view, None, accounts=Accounts(spec, {"b": account}))
    assert [one["rank"] for one in document["slow"]] == [1]
    assert [one["rank"] for one in document["not_finite"]] == [2]
    assert [line.partition(":")[0] for line in why(document)] == [
        "rank 1 of machine 1 is slow",
        "rank 2 of machine 2",
    ]
