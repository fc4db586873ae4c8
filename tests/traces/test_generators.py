import hashlib
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_traces.failure_stream import (
    BLOCK_ROWS,
    MAX_HORIZON_NS,
    FailureBlock,
    GeneratedStream,
    TraceStream,
    joined,
    to_trace,
)
from castor_traces.generators import (
    DomainFailures,
    EarlyFailures,
    Lemons,
    LognormalGaps,
    MergedFailures,
    PoissonFailures,
    RegularFailures,
    RenewalFailures,
    WeibullGaps,
)
from castor_traces.marks import (
    Cause,
    ExponentialRepair,
    FixedRepair,
    LognormalRepair,
    Marks,
    UniformRepair,
)
from castor_traces.merge import merged, without_failures_while_down
from castor_traces.write import format_trace

DAY_S = 86_400.0
DAY_NS = 86_400 * 10**9
COLUMNS = [column.name for column in fields(FailureBlock)]


def rows_of(blocks):
    """All rows as tuples, in order."""
    return [
        row
        for block in blocks
        for row in zip(*(getattr(block, name).tolist() for name in COLUMNS), strict=True)
    ]


def block_of(rows):
    columns = list(zip(*rows, strict=True)) or [[]] * 6
    kinds = [np.int64, np.int32, np.bool_, np.int64, np.int32, np.int16]
    return FailureBlock(*(np.array(c, dtype=k) for c, k in zip(columns, kinds, strict=True)))


MARKS = st.sampled_from(
    [
        Marks(),
        Marks(hardware_share=0.5, hardware_repair=ExponentialRepair(3 * DAY_S)),
        Marks(
            hardware_share=0.9,
            hardware_repair=UniformRepair(0.0, DAY_S),
            software_repair=FixedRepair(60.0),
        ),
    ]
)
LEMONS = st.sampled_from([None, Lemons(0.3, 8.0), Lemons(1.0, 2.0), Lemons(0.0, 5.0)])
MACHINES = st.integers(1, 40)
RATES = st.floats(0.0, 0.2).map(lambda per_day: per_day / DAY_S)


@st.composite
def leaf_processes(draw, machines):
    marks = draw(MARKS)
    while_down = draw(st.sampled_from(["keep", "none"])) if marks.hardware_repair else "keep"
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return PoissonFailures(machines, draw(RATES), draw(LEMONS), marks, while_down)
    if kind == 1:
        return RegularFailures(machines, draw(st.floats(0.0, 5.0)), marks, while_down)
    if kind == 2:
        shape, expected = draw(st.floats(0.2, 3.0)), draw(st.just(0.0) | st.floats(1e-12, 3.0))
        return EarlyFailures(machines, shape, expected, 20 * DAY_S, marks, while_down)
    if kind == 3:
        size = draw(st.integers(1, machines))
        return DomainFailures(machines, size, draw(RATES), marks, while_down)
    gaps = draw(st.sampled_from([WeibullGaps(0.5, 9 * DAY_S), LognormalGaps(1.0, 20 * DAY_S)]))
    warm_up_s = draw(st.sampled_from([0.0, 50 * DAY_S]))
    return RenewalFailures(machines, gaps, draw(LEMONS), warm_up_s, marks, while_down)


@st.composite
def processes(draw):
    machines = draw(MACHINES)
    parts = draw(st.lists(leaf_processes(machines), min_size=1, max_size=3))
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return MergedFailures(tuple(parts), draw(st.sampled_from(["keep", "none"])))


@settings(max_examples=3 * settings.default.max_examples // 2, deadline=None)
@given(processes(), st.integers(0, 2**64), st.integers(0, 60 * DAY_NS), st.integers(0, 60 * DAY_NS))
def test_blocks_are_ordered_bounded_and_a_prefix_of_a_longer_run(process, seed, one, other):
    short_ns, long_ns = sorted([one, other])
    blocks = list(process.blocks(seed, long_ns))
    assert all(0 < len(block) <= BLOCK_ROWS * 3 for block in blocks)
    rows = rows_of(blocks)
    times = [row[0] for row in rows]
    assert times == sorted(times)
    assert all(0 <= time < long_ns for time in times)
    assert all(0 <= row[1] < process.machines for row in rows)
    assert all(row[3] >= -1 for row in rows)
    again = rows_of(process.blocks(seed, short_ns))
    assert again == [row for row in rows if row[0] < short_ns]


@settings(max_examples=3 * settings.default.max_examples // 5, deadline=None)
@given(processes(), st.integers(0, 1000))
def test_up_and_down_times_alternate_where_asked(process, seed):
    marks = Marks(hardware_share=0.7, hardware_repair=ExponentialRepair(5 * DAY_S))
    parts = process.parts if isinstance(process, MergedFailures) else (process,)
    parts = tuple(replace(part, marks=marks, while_down="none") for part in parts)
    for alternating in (parts[0], MergedFailures(parts, "none")):
        back_ns = dict.fromkeys(range(process.machines), 0)
        for time_ns, machine, hardware, duration_ns, _, _ in rows_of(
            alternating.blocks(seed, 60 * DAY_NS)
        ):
            assert time_ns >= back_ns[machine]
            if hardware:
                back_ns[machine] = time_ns + duration_ns


def test_without_failures_while_down_leaves_out_exactly_those_of_a_machine_under_repair():
    rows = [
        (0, 1, True, 10, -1, -1),
        (5, 1, True, 100, -1, -1),  # left out, and its repair with it
        (5, 2, False, 50, -1, -1),
        (7, 2, True, -1, -1, -1),  # software takes no machine down
        (7, 2, True, 0, -1, -1),  # nor does an unknown repair
        (9, 1, False, -1, -1, -1),  # left out
        (10, 1, True, 5, -1, -1),  # back at this very instant
    ]
    blocks = iter([block_of(rows[:3]), block_of(rows[3:])])
    kept = rows_of(without_failures_while_down(blocks, 3))
    assert kept == [rows[0], rows[2], rows[3], rows[4], rows[6]]


@settings(max_examples=2 * settings.default.max_examples)
@given(
    st.lists(
        st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=5), max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_merging_equals_sorting_everything_at_once(streams):
    """Any splits into blocks, empty blocks and ties across them included."""
    prepared, everything = [], []
    for number, stream in enumerate(streams):
        ordered = iter(sorted(row for block in stream for row in block))
        blocks = [
            [(*next(ordered), True, number, -1, number % 2 - 1) for _ in block] for block in stream
        ]
        prepared.append(iter([block_of(block) for block in blocks]))
        everything += [row for block in blocks for row in block]
    offsets = [10 * number for number in range(len(streams))]
    got = rows_of(merged(prepared, offsets))
    shifted = [(*row[:5], row[5] + 10 * row[3] if row[5] >= 0 else -1) for row in everything]
    assert got == sorted(shifted, key=lambda row: (row[0], row[1], row[3]))


def test_merged_processes_draw_independently_and_name_their_causes_apart():
    part = PoissonFailures(8, 0.1 / DAY_S, marks=Marks(causes=(Cause("a", True, 1),)))
    other = replace(part, marks=Marks(causes=(Cause("b", False, 1), Cause("c", False, 2))))
    both = MergedFailures((part, other))
    assert both.causes == ("a", "b", "c")
    rows = rows_of(both.blocks(3, 100 * DAY_NS))
    times = {hardware: {r[0] for r in rows if r[2] is hardware} for hardware in (True, False)}
    assert not times[True] & times[False]
    assert all((row[5] == 0) == row[2] for row in rows)
    assert {row[5] for row in rows} == {0, 1, 2}


def test_a_domain_fails_whole():
    process = DomainFailures(
        10, 4, 0.2 / DAY_S, Marks(hardware_share=0.5, hardware_repair=UniformRepair(0, 99))
    )
    by_instant = {}
    for row in rows_of(process.blocks(1, 100 * DAY_NS)):
        by_instant.setdefault(row[0], []).append(row)
    assert len(by_instant) > 30
    assert {rows[0][4] for rows in by_instant.values()} == {0, 1, 2}
    for rows in by_instant.values():
        domain = rows[0][4]
        assert [row[1] for row in rows] == list(range(4 * domain, min(4 * domain + 4, 10)))
        assert len({row[2:] for row in rows}) == 1


def test_regular_failures_fall_one_in_each_slot():
    process = RegularFailures(5, 7.0)
    times = np.array([row[0] for row in rows_of(process.blocks(2, 30 * DAY_NS))])
    slot_ns = round(DAY_NS / 7)
    assert (times // slot_ns).tolist() == list(range(210))
    within = (times % slot_ns) / slot_ns
    assert within.min() < 0.05
    assert within.max() > 0.95


def test_a_machine_keeps_its_renewals_in_a_larger_cluster():
    small = RenewalFailures(5, WeibullGaps(0.7, 3 * DAY_S), warm_up_s=9.0)
    few = rows_of(small.blocks(4, 90 * DAY_NS))
    many = rows_of(replace(small, machines=50).blocks(4, 90 * DAY_NS))
    assert few == [row for row in many if row[1] < 5]


@pytest.mark.long
def test_memory_does_not_grow_with_the_horizon():
    process = MergedFailures(
        (
            PoissonFailures(1000, 0.1 / DAY_S, marks=Marks(hardware_repair=ExponentialRepair(60))),
            RenewalFailures(1000, WeibullGaps(0.7, 20 * DAY_S)),
            DomainFailures(1000, 10, 0.05 / DAY_S),
        )
    )

    def peak_bytes(days):
        tracemalloc.start()
        rows = sum(len(block) for block in process.blocks(1, days * DAY_NS))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rows, peak

    (rows, peak), (many_rows, later_peak) = peak_bytes(1200), peak_bytes(4800)
    assert many_rows > 3.9 * rows > 4 * BLOCK_ROWS
    # Blocks fill up at first; four times the rows in one piece would take four times as much.
    assert later_peak < 1.5 * peak


@settings(max_examples=40, deadline=None)
@given(processes(), st.integers(0, 99))
def test_a_trace_streams_the_failures_that_it_was_made_of(process, seed):
    horizon_ns = 20 * DAY_NS
    trace = to_trace(process, seed, horizon_ns, name="x")
    stream = TraceStream(trace)
    assert stream.machines == process.machines
    generated = rows_of(GeneratedStream(process, seed, horizon_ns).blocks())
    domains = sorted({f"domain-{row[4]}" for row in generated if row[4] >= 0})
    renumbered = [
        (*row[:4], domains.index(f"domain-{row[4]}") if row[4] >= 0 else -1, -1)
        for row in generated
    ]
    assert rows_of(stream.blocks()) == sorted(renumbered, key=lambda row: row[:2])


def test_joined_keeps_one_block_as_it_is():
    block = block_of([(1, 0, True, -1, -1, -1)])
    assert joined([block]) is block


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoissonFailures(0, 1.0), "machines must be 1"),
        (lambda: PoissonFailures(4, -1.0), "failure rate of a machine"),
        (lambda: PoissonFailures(4, float("nan")), "failure rate of a machine"),
        (lambda: PoissonFailures(4, 1.0, while_down="none"), "repair time"),
        (lambda: PoissonFailures(4, 1.0, while_down="never"), '"keep" or "none"'),
        (lambda: RegularFailures(4, -1.0), "failure rate of the cluster"),
        (lambda: EarlyFailures(4, 0.0, 1.0, 1.0), "shape of early failures"),
        (lambda: EarlyFailures(4, 1.0, -1.0, 1.0), "expected_per_machine"),
        (lambda: EarlyFailures(4, 1.0, 1.0, 0.0), "within_s"),
        (lambda: DomainFailures(4, 5, 1.0), "domain_size must be 1 to 4"),
        (lambda: RenewalFailures(4, WeibullGaps(1, 1), warm_up_s=-1.0), "warm_up_s"),
        (lambda: WeibullGaps(0.0, 1.0), "shape of Weibull gaps"),
        (lambda: WeibullGaps(1.0, 0.0), "mean gap"),
        (lambda: LognormalGaps(-1.0, 1.0), "sigma"),
        (lambda: Lemons(2.0, 1.0), "share of 0 to 1"),
        (lambda: Lemons(0.5, 0.0), "factor above 0"),
        (lambda: MergedFailures(()), "one number of machines"),
        (lambda: MergedFailures((PoissonFailures(2, 1.0), PoissonFailures(3, 1.0))), r"\[2, 3\]"),
        (lambda: PoissonFailures(1, 1.0).blocks(1, MAX_HORIZON_NS + 1), "73 years"),
        (lambda: RenewalFailures(1, WeibullGaps(1, 1)).blocks(1, -1), "73 years"),
        (lambda: list(PoissonFailures(1, 1.0).blocks(-1, 5)), "seed"),
    ],
)
def test_bad_parameters_say_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


GOLDEN = {
    "poisson": PoissonFailures(16, 0.015 / DAY_S, Lemons(0.2, 5.0), Marks(hardware_share=0.8)),
    "regular": RegularFailures(16, 2.0, Marks(hardware_repair=UniformRepair(240.0, 420.0))),
    "weibull": RenewalFailures(16, WeibullGaps(0.7, 66 * DAY_S), warm_up_s=660 * DAY_S),
    "lognormal": RenewalFailures(
        16,
        LognormalGaps(1.2, 20 * DAY_S),
        marks=Marks(hardware_repair=LognormalRepair(3600.0, 14_400.0)),
        while_down="none",
    ),
    "merged": MergedFailures(
        (
            PoissonFailures(
                16, 0.05 / DAY_S, marks=Marks(hardware_repair=ExponentialRepair(3 * DAY_S))
            ),
            DomainFailures(16, 4, 0.01 / DAY_S),
            EarlyFailures(16, 0.5, 1.0, 30 * DAY_S),
        ),
        "none",
    ),
}


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("poisson", "3b7be56e8c65600ee2d785bc40abfaa83808759103b05012cedaeb956041c008"),
        ("regular", "c9db61460cf85954425cbd2510d57b308ed43bcdc1d7ace1b2b275c1e8589bc5"),
        ("weibull", "54df1d059c9fad8b6c1e3827c9b1dae0539d4f979e66e0416d091dcc0312c079"),
        ("lognormal", "10944f6dcb14c91062bbc033a92ecb34ddfb10205b5b159cab54669ce585671b"),
        ("merged", "02d6d2abf7e1a58788ee95c0238c5714d2adb867825c824a85546ebcd320415e"),
    ],
)
def test_a_seed_gives_the_same_trace_byte_for_byte(name, sha256):
    trace = to_trace(GOLDEN[name], 20230, 365 * DAY_NS, name=name)
    assert len(trace.failures) > 50
    # Only the rows: the head may gain notes.
    rows = format_trace(trace).partition("time_s,")[2]
    assert hashlib.sha256(rows.encode()).hexdigest() == sha256
