"""A machine's ranks write over their only own buffers all, or none; their agent waits for that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from castor_runtime.arena import RankControl
from castor_runtime.arena.own_turn import OwnTurn, let_turns_end
from castor_runtime.trainer.last_copy import last_copy, wait_for_last_copy


def ranks(count: int = 2) -> list[RankControl]:
    return [RankControl(memoryview(bytearray(8 * 16)).cast("Q")) for _ in range(count)]


def end(
    of: list[RankControl],
    is_whole: Callable[[int, int], bool] = lambda *_: True,
    has_ended: Callable[[int], bool] = lambda _: False,
    limit_s: float = 30.0,
) -> None:
    asyncio.run(let_turns_end(of, is_whole, has_ended, limit_s))


def never() -> bool:
    return False


def test_a_turn_that_one_rank_begins_is_the_others_too() -> None:
    both = ranks()
    first, second = OwnTurn(both, 0), OwnTurn(both, 1)
    assert not second.is_begun(5)
    assert first.begin(5, gives_up=never)
    assert second.is_begun(5)
    assert not second.is_begun(6)


def test_before_the_first_turn_the_last_word_is_that_there_is_none() -> None:
    both = ranks()
    end(both, is_whole=lambda *_: False)
    for local in (0, 1):
        turn = OwnTurn(both, local)
        assert turn.is_refused(1)
        assert not turn.begin(1, gives_up=never)


def test_the_last_word_lets_all_ranks_go_as_far_as_one_has_gone() -> None:
    both = ranks()
    OwnTurn(both, 0).begin(5, gives_up=never)
    end(both)
    behind = OwnTurn(both, 1)
    assert behind.is_begun(5)
    assert not behind.is_refused(5)
    assert behind.begin(5, gives_up=never)
    assert behind.is_refused(6)
    assert not behind.begin(6, gives_up=never)


def test_who_turns_while_the_agent_asks_waits_for_its_word() -> None:
    both = ranks()
    for counters in both:
        counters.last_word = 1
    began: list[bool] = []
    turn = OwnTurn(both, 0)
    waiting = threading.Thread(target=lambda: began.append(turn.begin(5, gives_up=never)))
    waiting.start()
    while not both[0].turned:
        time.sleep(0.001)
    assert began == []
    end(both)  # it sees the turn
    waiting.join(30.0)
    assert began == [True]


def test_the_agent_waits_until_each_turn_has_ended_or_its_process() -> None:
    three = ranks(3)
    OwnTurn(three, 1).begin(5, gives_up=never)
    looks: list[tuple[int, int]] = []

    def is_whole(local: int, iteration: int) -> bool:
        looks.append((local, iteration))
        return local != 2 and looks.count((local, iteration)) > 3

    end(three, is_whole, has_ended=lambda local: local == 2)
    assert {iteration for _, iteration in looks} == {5}
    assert looks.count((0, 5)) == looks.count((1, 5)) == 4


def test_a_process_that_the_kernel_holds_is_not_waited_for_without_a_bound() -> None:
    both = ranks()
    OwnTurn(both, 0).begin(5, gives_up=never)
    end(both, is_whole=lambda *_: False, limit_s=0.05)


def test_a_process_ends_once_its_last_copy_has() -> None:
    assert wait_for_last_copy(0.0)
    with last_copy():
        assert not wait_for_last_copy(0.01)
    assert wait_for_last_copy(0.0)
    with pytest.raises(ValueError, match="it failed"), last_copy():
        raise ValueError("it failed")
    assert wait_for_last_copy(0.0)
