"""Idle spans from one generation to the next: what is known already is not measured again."""

from __future__ import annotations

from castor_runtime.trainer.span_profile import CollectiveTimes, IterationTimeline, Profiler


def timeline(begins_ns: int, ends_ns: int) -> IterationTimeline:
    only = CollectiveTimes("all_gather", 8, begins_ns, begins_ns, ends_ns, ends_ns)
    return IterationTimeline((only,), ends_ns, ends_ns + 10, 10)


def test_a_new_generation_measures_only_if_nobody_has_before() -> None:
    second = 10**9
    measured, elsewhere = timeline(second, 2 * second), (3 * second, 0)
    stayed, started = Profiler(2), Profiler(2)
    for _ in range(3):
        stayed.add(measured)
    assert stayed.due(drift=False) is not None
    for profiler in (stayed, started):
        profiler.begin_anew(elsewhere)
        assert not profiler.is_measuring
        profiler.add(timeline(5 * second, 6 * second))  # the first: memory is touched in it
        profiler.add(measured)
        assert profiler.due(drift=False) is None
        profiler.add(measured)
    # Who has measured goes by that, who is new by what the others agreed on.
    assert (stayed.has_drifted(), started.has_drifted()) == (False, True)
    final = stayed.final()
    assert final is not None
    assert final.iterations == 2, "those before the failure are forgotten"

    stayed.begin_anew(())  # the link may be another: measured by all
    assert stayed.is_measuring
    for _ in range(3):
        assert stayed.due(drift=False) is None
        stayed.add(measured)
    assert (stayed.due(drift=False) or (None, ""))[1] == "start"
