"""Which buffer may be written: never the one iteration that every rank still has."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.checkpoint_memory import (
    FAST,
    SAVING,
    BufferHeader,
    BufferState,
    buffer_to_write,
    buffers_of,
    fills_own_last,
    offered,
    shards_in_memory,
    smaller,
)

EMPTY = BufferHeader(BufferState.EMPTY)


def complete(iteration: int, generation: int = 0) -> BufferHeader:
    return BufferHeader(BufferState.COMPLETE, iteration, generation)


def every_header() -> list[BufferHeader]:
    numbers = list(itertools.product(range(3), range(2)))
    return [EMPTY, BufferHeader(BufferState.CORRUPT)] + [
        BufferHeader(state, iteration, generation)
        for state in (BufferState.WRITING, BufferState.COMPLETE, BufferState.CORRUPT)
        for iteration, generation in numbers
    ]


def test_of_all_pairs_what_the_ranks_agreed_on_is_kept_and_the_rest_goes_by_worth() -> None:
    for pair in itertools.product(every_header(), repeat=2):
        for agreed in (None, 0, 1, 2, 7):
            chosen = buffer_to_write(pair, agreed, 9)
            written, kept = pair[chosen], pair[1 - chosen]
            # What is lost is never the only copy of the agreed iteration.
            if agreed in offered(pair):
                assert agreed in offered([kept])
            # Nor a complete one while there is something worthless to write over.
            if written.state is BufferState.COMPLETE:
                assert kept.state is BufferState.COMPLETE
                if agreed not in offered(pair):
                    assert (written.iteration, written.generation) <= (
                        kept.iteration,
                        kept.generation,
                    )


def test_a_checkpoint_and_the_fetch_beside_it_never_choose_the_same_buffer() -> None:
    """Whoever begins first, and however far the other one is: neither sees the other choose."""

    def orders(before: str = "", fetch: str = "fF", checkpoint: str = "cC") -> list[str]:
        if not fetch and not checkpoint:
            return [before]
        firsts = ([fetch] if fetch else []) + ([checkpoint] if checkpoint else [])
        return [
            order
            for first in firsts
            for order in orders(
                before + first[0],
                fetch[1:] if first is fetch else fetch,
                checkpoint[1:] if first is checkpoint else checkpoint,
            )
        ]

    left = [EMPTY, BufferHeader(BufferState.CORRUPT), BufferHeader(BufferState.WRITING, 4, 1)]
    assert len(orders()) == 6
    for order in orders():
        for start in itertools.product(left, repeat=2):
            headers, places = list(start), {}
            for step in order:
                iteration = 4 if step in "fF" else 5
                if step == "f":
                    places[4] = buffer_to_write(headers, None, 4)
                elif step == "c":
                    places[5] = buffer_to_write(headers, 4, 5, beside_fetch=True)
                state = BufferState.WRITING if step in "fc" else BufferState.COMPLETE
                headers[places[iteration]] = BufferHeader(state, iteration, 2)
            assert sorted(places.values()) == [0, 1]
    # What was held all along is kept, wherever it is, and is not fetched.
    assert buffer_to_write([EMPTY, complete(4)], 4, 5, beside_fetch=True) == 0


@pytest.mark.parametrize(
    ("headers", "agreed", "chosen"),
    [
        ([EMPTY, EMPTY], None, 0),
        ([complete(4), EMPTY], 4, 1),
        ([complete(4), complete(5)], 5, 0),
        ([complete(5), complete(4)], 5, 1),
        # One iteration ahead of the others: what is ahead goes, or the common one would.
        ([complete(4), complete(5)], 4, 1),
        # A rank re-made both: the newer generation stays.
        ([complete(4, 1), complete(4, 2)], 4, 0),
        ([complete(4, 2), complete(4, 1)], 4, 1),
        ([BufferHeader(BufferState.CORRUPT, 9, 0), complete(3)], None, 0),
        ([complete(3), BufferHeader(BufferState.WRITING, 9, 0)], None, 1),
    ],
)
def test_by_hand(headers: list[BufferHeader], agreed: int | None, chosen: int) -> None:
    assert buffer_to_write(headers, agreed, 9) == chosen


@given(st.lists(st.sampled_from(["write 0", "write 1", "crash 0", "crash 1"]), max_size=60))
def test_two_ranks_always_share_the_iteration_they_agreed_on(steps: list[str]) -> None:
    buffers = [[complete(0), EMPTY], [complete(0), EMPTY]]
    ahead = [0, 0]
    agreed = 0
    for step in steps:
        verb, rank = step.split()[0], int(step.split()[1])
        if ahead[rank] > agreed:
            continue  # invariant 2: the next iteration waits for the others
        index = buffer_to_write(buffers[rank], agreed, 9)
        buffers[rank][index] = BufferHeader(BufferState.WRITING, agreed + 1, 0)
        if verb == "write":
            buffers[rank][index] = complete(agreed + 1)
            ahead[rank] = agreed + 1
        assert agreed in offered(buffers[0]) & offered(buffers[1])
        if min(ahead) > agreed:
            agreed += 1


def test_only_what_is_complete_is_offered() -> None:
    for state in BufferState:
        assert offered([BufferHeader(state, 3, 1), EMPTY]) == (
            {3} if state is BufferState.COMPLETE else set()
        )


def test_with_a_single_buffer_there_is_no_safe_choice() -> None:
    assert buffer_to_write([complete(3)], 2, 4) == 0
    for headers, agreed in (([complete(3)], 3), ([], None)):
        with pytest.raises(ValueError, match="give the replica two buffers, or agree first"):
            buffer_to_write(headers, agreed, 9)


def test_an_only_buffer_is_written_over_by_what_is_agreed_on() -> None:
    for header in every_header():
        assert buffer_to_write([header], 9, 9) == 0
    # Of two the agreed one stays, whatever is written.
    assert buffer_to_write([complete(9), complete(4)], 9, 9) == 1


def test_saving_takes_a_buffer_less_where_there_is_a_peer() -> None:
    for replicas in range(1, 5):
        assert shards_in_memory(FAST, replicas) == 2 * replicas
        assert shards_in_memory(SAVING, replicas) == max(2, 2 * replicas - 1)
        for mode in (FAST, SAVING):
            assert buffers_of(mode, replicas, is_own=False) == 2
            own = buffers_of(mode, replicas, is_own=True)
            assert fills_own_last(own) == (mode == SAVING and replicas > 1)


def test_what_takes_less_memory_keeps_as_many_replicas_as_it_can() -> None:
    assert smaller(FAST, 3) == [(SAVING, 3), (FAST, 2), (SAVING, 2), (FAST, 1)]
    assert smaller(SAVING, 3) == [(FAST, 2), (SAVING, 2), (FAST, 1)]
    assert smaller(FAST, 1) == []


@pytest.mark.parametrize("state", [BufferState.WRITING, BufferState.COMPLETE])
@pytest.mark.parametrize("numbers", [(-1, 0), (0, -1)])
def test_a_buffer_in_use_names_what_it_holds(state: BufferState, numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs an iteration and a generation"):
        BufferHeader(state, *numbers)
