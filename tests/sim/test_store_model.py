"""The simulator's store by itself: time, injected faults, and what must always hold of it.

That it answers as etcd does is tests/runtime/test_store_contract.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.store import (
    MAX_OPERATIONS,
    Compare,
    Delete,
    Keys,
    KeyValue,
    LeaseLostError,
    Put,
    StoreEvent,
    StoreUnavailableError,
    Txn,
)
from castor_sim.store_model import StoreModel


def put(key: str, value: str = "", lease: int | None = None) -> Txn:
    return Txn((), (Put(key, value, lease),))


def test_leases_end_at_their_time_in_its_order() -> None:
    model = StoreModel()
    late, soon, same = model.grant(3.0, 0.0), model.grant(1.0, 0.0), model.grant(2.0, 1.0 - 1e-9)
    for key, lease in (("late", late), ("soon", soon), ("same", same)):
        model.transact(put(key, "", lease), 1.0 - 1e-9)
    assert model.next_end_s() == 1.0
    model.advance(1.0)
    assert [event.key for event in model.events(Keys.under("soon"), 5, 1.0)] == ["soon"]
    # Both others at once, though time made one step: the earlier end has the earlier revision.
    model.advance(10.0)
    gone = [
        event for prefix in ("late", "same") for event in model.events(Keys.under(prefix), 6, 10.0)
    ]
    assert {event.key: event.mod_revision for event in gone} == {"same": 6, "late": 7}
    assert model.next_end_s() == math.inf


def test_leases_that_end_at_one_time_end_in_order_of_number() -> None:
    model = StoreModel()
    leases = [model.grant(1.0, 0.0) for _ in range(4)]
    for lease in reversed(leases):
        model.transact(put(f"k{lease}", "", lease), 0.0)
    model.advance(1.0)
    assert [event.key for event in model.events(Keys.under("k"), 6, 1.0)] == [
        "k1",
        "k2",
        "k3",
        "k4",
    ]


def test_a_renewal_counts_from_when_it_comes() -> None:
    model = StoreModel()
    lease = model.grant(5.0, 0.0)
    assert model.keep_alive(lease, 4.0) == 5.0
    assert model.next_end_s() == 9.0
    model.advance(8.999)
    assert model.keep_alive(lease, 8.999) == 5.0
    with pytest.raises(LeaseLostError):
        model.keep_alive(lease, 13.999)


def test_a_lease_can_be_made_to_end_early_or_late() -> None:
    model = StoreModel(expiry_delay_s=0.5)
    early, late, other = (model.grant(5.0, 0.0) for _ in range(3))
    for lease in (early, late, other):
        model.transact(put(f"k{lease}", "", lease), 0.0)
    model.expire(early, 1.0)
    with pytest.raises(LeaseLostError):
        model.keep_alive(early, 1.0)
    with pytest.raises(LeaseLostError):
        model.expire(early, 1.0)
    model.delay_expiry(late, 20.0)
    assert model.next_end_s() == 5.5
    model.advance(5.5)
    assert [pair.key for pair in model.get_prefix("k", 24.9)[0]] == [f"k{late}"]
    assert model.get_prefix("k", 25.0)[0] == []
    # Even a clock that is off by more than the lease's time can't end it before it began.
    ahead = model.grant(1.0, 30.0)
    model.delay_expiry(ahead, -9.0)
    assert model.next_end_s() == 30.0


def test_while_stopped_nothing_is_answered_and_no_lease_ends() -> None:
    model = StoreModel()
    lease = model.grant(2.0, 0.0)
    model.transact(put("a", "", lease), 0.0)
    model.stop(1.5)
    assert not model.running
    assert model.next_end_s() == math.inf
    for call in (
        lambda: model.grant(1.0, 2.0),
        lambda: model.keep_alive(lease, 2.0),
        lambda: model.revoke(lease, 2.0),
        lambda: model.transact(put("a"), 2.0),
        lambda: model.get_prefix("a", 2.0),
        lambda: model.events(Keys.under("a"), 1, 2.0),
    ):
        with pytest.raises(StoreUnavailableError):
            call()
    model.advance(50.0)
    model.start(60.0)
    model.start(61.0)
    assert model.next_end_s() == 62.0
    assert len(model.get_prefix("a", 61.9)[0]) == 1
    assert model.get_prefix("a", 62.0)[0] == []


def test_a_lease_that_was_due_before_the_stop_has_ended() -> None:
    model = StoreModel()
    lease = model.grant(2.0, 0.0)
    model.stop(2.0)
    model.start(3.0)
    with pytest.raises(LeaseLostError):
        model.keep_alive(lease, 3.0)


def test_time_and_compaction_keep_their_order() -> None:
    model = StoreModel()
    model.advance(5.0)
    with pytest.raises(ValueError, match="backwards"):
        model.get_prefix("a", 4.0)
    for i in range(3):
        model.transact(put("a", str(i)), 5.0)
    with pytest.raises(ValueError, match="at most"):
        model.compact(5)
    model.compact(3)
    model.compact(2)
    assert [event.value for event in model.events(Keys.under("a"), 3, 5.0)] == ["1", "2"]
    with pytest.raises(StoreUnavailableError):
        model.events(Keys.under("a"), 2, 5.0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Txn((), ()), "at least one operation"),
        (lambda: Txn((), (Put("a", "1"), Delete("a"))), "one operation of a transaction only"),
        (lambda: Txn((), tuple(Put(str(i), "") for i in range(MAX_OPERATIONS + 1))), "split"),
        (lambda: Txn((Compare("a", 0),) * (MAX_OPERATIONS + 1), (Delete("a"),)), "split"),
        (lambda: Put("", "1"), "key"),
        (lambda: Put("a\0b", "1"), "key"),
        (lambda: Put("a", "1", 0), "lease"),
        (lambda: Delete(""), "key"),
        (lambda: Compare("", 0), "key"),
        (lambda: Txn((Compare("a", 1, 1),) * (MAX_OPERATIONS // 2 + 1), (Delete("a"),)), "split"),
        (lambda: Compare("a"), "compare"),
        (lambda: Compare("a", -1), "create_revision"),
        (lambda: Compare("a", mod_revision=-1), "mod_revision"),
    ],
)
def test_what_no_store_takes_cannot_be_written_down(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


_keys = st.sampled_from(["a", "b", "c"])
_operations = st.one_of(
    st.builds(Put, _keys, st.text(max_size=1), st.none() | st.integers(1, 4)),
    st.builds(Delete, _keys),
)
_calls = st.one_of(
    st.tuples(st.just("grant"), st.floats(0.1, 4.0)),
    st.tuples(st.sampled_from(["keep_alive", "revoke", "expire"]), st.integers(1, 4)),
    st.tuples(st.just("delay_expiry"), st.integers(1, 4), st.floats(-5.0, 5.0)),
    st.tuples(
        st.just("transact"),
        st.lists(st.builds(Compare, _keys, st.integers(0, 5)), max_size=1),
        st.lists(_operations, min_size=1, max_size=3, unique_by=lambda item: item.key),
    ),
    st.tuples(st.sampled_from(["stop", "start"])),
)


@given(script=st.lists(st.tuples(st.floats(0.0, 1.5), _calls), max_size=40))
def test_the_events_tell_the_whole_state(script: list[tuple[float, tuple]]) -> None:
    """Replayed into a plain dict the events give the keys; leases own what their keys say."""
    model = StoreModel()
    now_s = 0.0
    alive: dict[int, float] = {}
    for step_s, call in script:
        now_s += step_s
        before = model.revision
        with suppress(LeaseLostError, StoreUnavailableError):
            carry_out(model, call, now_s, alive)
        assert model.revision >= before
    model.start(now_s)
    state: dict[str, KeyValue] = {}
    last = 1
    for prefix in ("a", "b", "c"):
        revision = 1
        for event in model.events(Keys.under(prefix), 1, now_s):
            assert event.mod_revision > revision
            revision = event.mod_revision
            last = max(last, revision)
            replay(state, event)
    for prefix in ("a", "b", "c"):
        found, revision = model.get_prefix(prefix, now_s)
        assert revision == last
        assert [(pair.value, pair.create_revision, pair.mod_revision) for pair in found] == [
            (pair.value, pair.create_revision, pair.mod_revision)
            for key, pair in state.items()
            if key == prefix
        ]
    # Whoever ends all leases leaves exactly the keys that live by none.
    stay = {
        p.key for prefix in "abc" for p in model.get_prefix(prefix, now_s)[0] if p.lease is None
    }
    for lease in alive:
        model.revoke(lease, now_s)
    assert stay == {p.key for prefix in "abc" for p in model.get_prefix(prefix, now_s)[0]}


def carry_out(model: StoreModel, call: tuple, now_s: float, alive: dict[int, float]) -> None:
    match call:
        case ("grant", ttl_s):
            alive[model.grant(ttl_s, now_s)] = ttl_s
        case ("keep_alive", lease):
            assert model.keep_alive(lease, now_s) == alive[lease]
        case ("delay_expiry", lease, delay_s):
            model.delay_expiry(lease, delay_s)
        case ("transact", compares, operations):
            result = model.transact(Txn(tuple(compares), tuple(operations)), now_s)
            assert result.revision == model.revision
        case (name, *arguments):
            getattr(model, name)(*arguments, now_s)


def replay(state: dict[str, KeyValue], event: StoreEvent) -> None:
    """Carry an event over into the state, and hold its create_revision to what went before."""
    held = state.pop(event.key, None)
    if event.value is None:
        assert held is not None
        assert event.create_revision == 0
        return
    assert event.create_revision == (held.create_revision if held else event.mod_revision)
    state[event.key] = KeyValue(
        event.key, event.value, event.create_revision, event.mod_revision, None
    )
