"""What one machine sees of its trainers: who is stopped, whether all stand, and what is life."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from castor_policy.membership import WatchLimits
from castor_policy.trainer_watch import Hung, Sign, Standing, TrainerWatch

LOOK_S = 0.05


def sign(iteration: int = 0, collectives: int = 0, *, phase: int = 3) -> Sign:
    return Sign(phase, 1, collectives, (phase, iteration, collectives), 1.0)


def looked(
    watch: TrainerWatch, signs: Callable[[float], dict[int, Sign]], seconds: float
) -> Hung | Standing | None:
    """Look on until something is wrong; `signs` says what there is to see after so long."""
    for look in range(round(seconds / LOOK_S)):
        at_s = look * LOOK_S
        if (verdict := watch.observe(at_s, signs(at_s))) is not None:
            return verdict
    return None


def beating(one: Sign, at_s: float) -> Sign:
    return replace(one, heartbeat=1 + round(at_s / LOOK_S))


def watcher() -> TrainerWatch:
    return TrainerWatch(WatchLimits(hang_s=0.5, stall_factor=10.0, stall_s=2.0, startup_s=5.0))


def test_a_stopped_process_is_found_before_its_checkpointer_exists() -> None:
    """It has no heartbeat yet: only the kernel says that it is stopped (case u9)."""
    before = replace(sign(phase=0), heartbeat=0, stopped=True)
    other = replace(before, stopped=False)
    assert looked(watcher(), lambda _: {4: other, 5: before}, 4) == Hung(5, "stood still for 0.5 s")


def test_a_process_that_waits_for_its_disk_before_its_checkpointer_exists_is_let_be() -> None:
    before = replace(sign(phase=0), heartbeat=0)
    assert looked(watcher(), lambda _: {0: before}, 4.9) is None
    assert looked(watcher(), lambda _: {0: before}, 5.5) == Standing({0: (0, 0, 0)}, 5.0)


def trained(at_s: float) -> int:
    """Ten iterations of a tenth of a second, and no more."""
    return min(10, int(at_s / 0.1))


def test_silence_of_all_ranks_is_a_standstill_with_how_far_each_has_come() -> None:
    def signs(at_s: float) -> dict[int, Sign]:
        return {rank: beating(sign(trained(at_s), 30 + rank), at_s) for rank in (2, 3)}

    assert looked(watcher(), signs, 2.9) is None
    assert looked(watcher(), signs, 4) == Standing({2: (3, 10, 32), 3: (3, 10, 33)}, 2.0)


@pytest.mark.parametrize("life", ["collectives", "busy"])
def test_one_rank_that_shows_life_keeps_the_machine_alive(life: str) -> None:
    def signs(at_s: float) -> dict[int, Sign]:
        waits = beating(sign(trained(at_s), 30), at_s)
        shown = at_s > 2 and (True if life == "busy" else int(at_s))
        return {0: waits, 1: replace(waits, **{life: shown}) if at_s > 2 else waits}

    assert looked(watcher(), signs, 20) is None


def test_a_rank_that_has_finished_is_not_waited_for() -> None:
    def signs(at_s: float) -> dict[int, Sign]:
        ended = replace(sign(10, 30, phase=4), heartbeat=5)
        return {0: ended, 1: beating(sign(trained(at_s), 30), at_s)}

    assert looked(watcher(), signs, 4) == Standing({1: (3, 10, 30)}, 2.0)
    assert looked(watcher(), lambda _: {0: sign(10, phase=4)}, 10) is None


def test_who_stands_still_is_told_before_the_others_that_wait_for_it() -> None:
    """A rank stopped while all wait for it: the stop is found, long before the standstill."""

    def signs(at_s: float) -> dict[int, Sign]:
        return {0: beating(sign(trained(at_s), 31), at_s), 1: sign(trained(at_s), 30)}

    assert looked(watcher(), signs, 4) == Hung(1, "stood still for 0.5 s")
