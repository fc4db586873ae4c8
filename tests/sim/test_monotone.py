"""Less can go wrong, no more can be lost: what holds for every run under common random numbers.

What can be proved, and is tested here for random runs in clouds whose lost machines are replaced
by whichever requested one comes first:

* A subset of the failures never leaves less useful time, if
  (a) a recovery costs the same whatever tier it loads from (here: all of it is detection, wait and
      warm-up). Otherwise a restart from scratch, which retrieves nothing, may beat the retrieval
      of a checkpoint that saved less than the retrieval takes;
  (b) where both tiers are used, a persistent checkpoint is complete at once and stalls nothing, and
      is taken after an iteration that memory checkpoints too. A failure aborts a transfer to
      storage for good, so that a run that was set back and retrains that iteration may end up with
      the newer persistent checkpoint; see `test_where_one_more_failure_helps`;
  (c) a standby takes over at once: a machine that was requested for an earlier failure and arrives
      takes over at once as well.
  The proof is by the order of the two runs: at every time the run with fewer failures has trained
  at least as far, holds checkpoints at least as new, has at least as many shards whole, and waits
  for no more machines; each event keeps that order under (a) to (c). In a fleet of machines with
  identities no such order exists: an earlier failure moves a position to another machine, and the
  next fault may then hit a spare.
* By the same proof, more replicas (nested host sets) and a shorter period of persistent
  checkpoints (one that divides the other) never leave less, where they cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.placement import place
from castor_policy.recovery import SCRATCH, STORAGE
from castor_records.events.event import Entry, Event
from castor_records.events.failures import Planned, Resumed
from castor_sim.run import Engine, run_once
from castor_sim.setup import Setup, load_setup
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally

HORIZON_NS = 600
MACHINES = 6

# Small numbers on purpose: ties between failures, phases and arrivals are then common.
small = st.integers(0, 12)
RESTORE_NS = 60
Row = tuple[int, int, int, int]


def rows_of(machines: int, most: int) -> st.SearchStrategy[list[Row]]:
    """Rows of (time_ns, machine, hardware, restore_ns).

    Each is drawn as one number: hypothesis takes as long for a draw as the engine for a run.
    """

    def row(number: int) -> Row:
        rest, time_ns = divmod(number, HORIZON_NS + 1)
        rest, machine = divmod(rest, machines)
        restore_ns, hardware = divmod(rest, 2)
        return time_ns, machine, hardware, restore_ns

    rows = st.integers(0, (HORIZON_NS + 1) * machines * 2 * (RESTORE_NS + 1) - 1).map(row)
    return st.lists(rows, max_size=most)


rows_of_failures = rows_of(MACHINES, 20)


@st.composite
def one_tier(draw: st.DrawFn) -> StrategyCosts:
    """Memory or storage alone, with any stall and transfer, at equal recovery costs."""
    tier = draw(st.sampled_from(["memory", "storage"]))
    iteration, every = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    return StrategyCosts(
        iteration_ns=iteration,
        **{
            f"{tier}_every": every,
            f"{tier}_stall_ns": draw(st.integers(0, 5)),
            f"{tier}_transfer_ns": draw(st.integers(0, every * iteration)),
        },
        replicate_ns=draw(small),
        warm_up_ns=draw(small),
        memory_in_trainer=draw(st.integers(0, 1)),
    )


@st.composite
def two_tiers(draw: st.DrawFn) -> StrategyCosts:
    """Memory before storage, under conditions (a) and (b)."""
    iteration, every = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    return StrategyCosts(
        iteration_ns=iteration,
        memory_every=every,
        memory_stall_ns=draw(st.integers(0, 3)),
        memory_transfer_ns=draw(st.integers(0, every * iteration)),
        storage_every=every * draw(st.integers(1, 5)),
        replicate_ns=draw(small),
        warm_up_ns=draw(small),
        memory_in_trainer=draw(st.integers(0, 1)),
    )


@st.composite
def clouds(draw: st.DrawFn) -> Operations:
    """Under condition (c)."""
    return Operations(
        positions=MACHINES,
        standbys=draw(st.integers(0, 3)),
        heartbeat_ns=draw(st.integers(1, 3)),
        poll_ns=draw(st.integers(2, 5)),
        misses=draw(st.sampled_from([0, 3])),
    )


placements = st.builds(
    place, st.sampled_from(["group", "ring"]), st.just(MACHINES), st.integers(1, 3)
)


@pytest.mark.long
@settings(max_examples=15 * settings.default.max_examples)
@given(st.one_of(one_tier(), two_tiers()), clouds(), placements, rows_of_failures, st.data())
def test_fewer_failures_never_leave_less_useful_time(
    jump, one_block, profile, operations, placement, rows, data
) -> None:
    check_costs(profile)
    kept = data.draw(st.integers(0, 2 ** len(rows) - 1))
    fewer = [row for index, row in enumerate(rows) if kept >> index & 1]
    with_all, with_fewer = (
        jump(profile, operations, placement.replicas, one_block(some), horizon_ns=HORIZON_NS)
        for some in (rows, fewer)
    )
    assert with_fewer.useful_ns >= with_all.useful_ns
    assert with_fewer.iterations >= with_all.iterations


@settings(max_examples=5 * settings.default.max_examples)
@given(two_tiers(), clouds(), rows_of_failures, st.sampled_from(["ring", "group"]))
def test_more_replicas_never_leave_less_useful_time(
    jump, one_block, profile, operations, rows, strategy
) -> None:
    """Host sets contain those of fewer replicas: rings of m + 1, groups whose size m divides."""
    counts = range(1, MACHINES + 1) if strategy == "ring" else (1, 2, 6)
    useful = []
    for replicas in counts:
        placement = place(strategy, MACHINES, replicas)
        tally = jump(
            profile, operations, placement.replicas, one_block(rows), horizon_ns=HORIZON_NS
        )
        useful.append(tally.useful_ns)
    assert useful == sorted(useful)


@settings(max_examples=5 * settings.default.max_examples)
@given(
    st.one_of(one_tier(), two_tiers()), clouds(), placements, rows_of_failures, st.integers(2, 4)
)
def test_a_shorter_storage_period_at_no_cost_never_leaves_less(
    jump, one_block, profile, operations, placement, rows, factor
) -> None:
    short = profile._replace(
        storage_every=profile.storage_every or profile.memory_every,
        storage_stall_ns=0,
        storage_transfer_ns=0,
    )
    useful = [
        jump(
            short._replace(storage_every=every),
            operations,
            placement.replicas,
            one_block(rows),
            horizon_ns=HORIZON_NS,
        ).useful_ns
        for every in (factor * short.storage_every, short.storage_every)
    ]
    assert useful == sorted(useful)


@pytest.mark.parametrize(
    ("case", "profile", "operations", "extra", "rows"),
    [
        (
            "an aborted transfer to storage is not taken up again",
            # A software failure at 35 aborts the transfer of iteration 3 (30 to 45), and training
            # goes on from 3 in memory. Set back by the loss of both machines at 15, it is at 2 by
            # then, trains 3 again and has it in storage at 60. Both lost at 62: 3 against nothing.
            StrategyCosts(iteration_ns=10, memory_every=1, storage_every=3, storage_transfer_ns=15),
            Operations(2),
            [(15, 0, 1, 0), (15, 1, 1, 0)],
            [(35, 0, 0, 0), (62, 0, 1, 0), (62, 1, 1, 0)],
        ),
        (
            "a restart from scratch retrieves nothing",
            # At 12 it takes 30 to retrieve iteration 1, which was worth 10. The run that failed at
            # 5 has nothing to retrieve.
            StrategyCosts(iteration_ns=10, storage_every=1, retrieve_storage_ns=30),
            Operations(2),
            [(5, 0, 0, 0)],
            [(12, 0, 0, 0)],
        ),
        (
            "a failure in the stall of a persistent checkpoint skips it",
            # Memory holds iteration 1 already, and a recovery that costs nothing goes on from it.
            StrategyCosts(iteration_ns=10, memory_every=1, storage_every=1, storage_stall_ns=50),
            Operations(2),
            [(10, 0, 0, 0)],
            [],
        ),
        (
            "a requested machine that arrives needs no activation",
            # The loss at 5 took the standby until 66; the loss at 60 waits until then, for the
            # machine requested at 5. Without the first loss a standby is activated by 110.
            StrategyCosts(iteration_ns=10),
            Operations(2, standbys=1, activation_ns=50),
            [(5, 0, 1, 61)],
            [(60, 1, 1, 100)],
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_where_one_more_failure_helps(case, profile, operations, extra, rows, all_three) -> None:
    """The conditions above are needed: the model's own cases where a failure more costs less."""
    replicas = [[0, 1], [1, 0]]
    more, _ = all_three(profile, operations, replicas, extra + rows, horizon_ns=90)
    fewer, _ = all_three(profile, operations, replicas, rows, horizon_ns=90)
    assert more.useful_ns > fewer.useful_ns, (more, fewer)


@st.composite
def any_profile(draw: st.DrawFn) -> StrategyCosts:
    iteration = draw(st.integers(1, 9))
    memory_every, storage_every = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([0, 1, 4]))
    return StrategyCosts(
        iteration_ns=iteration,
        memory_every=memory_every,
        memory_stall_ns=draw(st.integers(0, 3)),
        memory_transfer_ns=draw(st.integers(0, memory_every * iteration)),
        storage_every=storage_every,
        storage_stall_ns=draw(st.integers(0, 5)),
        storage_transfer_ns=draw(st.integers(0, storage_every * iteration)),
        serialise_ns=draw(small),
        retrieve_own_ns=draw(small),
        retrieve_peer_ns=draw(small),
        retrieve_storage_ns=draw(small),
        replicate_ns=draw(small),
        warm_up_ns=draw(st.integers(1, 12)),
    )


def completions(profile: StrategyCosts, start: int) -> Iterator[tuple[int, str, int]]:
    """Walk through training from `start`: when which tier's checkpoint of which iteration is
    complete, in order of iterations.
    """
    now_ns, iteration = 0, start
    while True:
        now_ns += profile.iteration_ns
        iteration += 1
        if profile.memory_every and iteration % profile.memory_every == 0:
            now_ns += profile.memory_stall_ns
            yield now_ns + profile.memory_transfer_ns, "memory", iteration
        if profile.storage_every and iteration % profile.storage_every == 0:
            now_ns += profile.storage_stall_ns
            yield now_ns + profile.storage_transfer_ns, "storage", iteration
        yield now_ns, "none", iteration


def newest(profile: StrategyCosts, start: int, elapsed_ns: int) -> dict[str, int]:
    """The newest complete checkpoint of each tier, `elapsed_ns` after training began."""
    found = {"memory": 0, "storage": 0}
    for ready_ns, tier, iteration in completions(profile, start):
        if ready_ns > elapsed_ns and (iteration - start) * profile.iteration_ns > elapsed_ns:
            return found
        if tier != "none" and ready_ns <= elapsed_ns:
            found[tier] = iteration
    raise AssertionError("training goes on for ever")


@settings(max_examples=3 * settings.default.max_examples)
@given(any_profile(), st.integers(1, 200), st.integers(0, 30))
def test_failures_fall_back_to_the_last_complete_checkpoint(
    one_block, profile, first_ns, delay_ns
) -> None:
    """A checkpoint in transfer does not count, and a failure in a recovery changes nothing."""
    check_costs(profile)
    complete = newest(profile, 0, first_ns)
    expected = max(complete.values())
    planned: list[int] = []
    tiers: list[str] = []
    resumed: list[int] = []

    def observe(entry: Entry[Event]) -> None:
        if isinstance(entry.event, Planned):
            planned.append(entry.event.iteration)
            tiers.append(entry.event.tier)
        if isinstance(entry.event, Resumed):
            resumed.append(entry.time_ns)

    engine = SimpyEngine(
        profile,
        Operations(2),
        [[0, 1], [1, 0]],
        one_block([(first_ns, 0, 0, 0), (first_ns + delay_ns, 1, 0, 0)]),
        horizon_ns=1000,
        observe=observe,
    )
    tally = engine.run()
    if resumed[0] < first_ns + delay_ns:
        trained_ns = first_ns + delay_ns - resumed[0]
        again = newest(profile, expected, trained_ns)
        assert planned == [expected, max(expected, *again.values())]
        assert tally.recoveries == 2
    else:
        # Ties: what ends at the instant of a failure has ended before it.
        assert set(planned) == {expected}
        assert tally.recoveries == (2 if resumed[0] == first_ns + delay_ns else 1)
    # The first plan's tier; what a recovery has loaded is in memory for the next.
    if expected == 0:
        assert tiers[0] == "scratch"
    else:
        in_memory = complete["memory"] >= complete["storage"]
        assert tiers[0] == ("own_memory" if in_memory else "storage")


@settings(max_examples=3 * settings.default.max_examples)
@given(
    any_profile(),
    st.sampled_from([(6, 2), (6, 3), (7, 2)]),
    st.integers(0, 2),
    st.integers(1, 300),
    rows_of_failures,
)
def test_losing_a_whole_group_never_ends_in_memory(
    jump, one_block, profile, sizes, group, time_ns, rows
) -> None:
    machines, replicas = sizes
    placement = place("group", machines, replicas)
    members = placement.groups[group % len(placement.groups)]
    loss = [(time_ns, machine, 1, 5) for machine in members]
    before = [row for row in rows if row[0] < time_ns]
    sources: list[int] = []
    jump(
        profile,
        Operations(machines),
        placement.replicas,
        one_block([*before, *loss]),
        horizon_ns=time_ns + 10_000,
        sources=sources,
    )
    assert len(sources) == len(before) + len(loss)
    assert set(sources[-len(loss) :]) <= {STORAGE, SCRATCH}


@settings(max_examples=4 * settings.default.max_examples)
@given(any_profile(), st.integers(1, 7), st.integers(0, 3), st.integers(0, 1), st.data())
def test_parts_sum_to_wall_time_and_every_failure_is_counted(
    jump, one_block, profile, positions, extra, cloud, data
) -> None:
    fleet = 0 if cloud else positions + extra
    rows = data.draw(rows_of(max(fleet, positions), 25))
    operations = Operations(positions, fleet=fleet, standbys=extra, misses=1, heartbeat_ns=1,
                            poll_ns=data.draw(st.integers(2, 9)))  # fmt: skip
    replicas = place("group", positions, min(2, positions)).replicas
    tally = jump(profile, operations, replicas, one_block(rows), horizon_ns=HORIZON_NS)
    parts = tally.as_dict()
    assert all(value >= 0 for value in parts.values())
    assert tally.wall_ns == HORIZON_NS == tally.useful_ns + tally.wasted_ns()
    counted = tally.software_failures + tally.hardware_failures + tally.spare_failures
    assert counted == sum(row[0] <= HORIZON_NS for row in rows)
    # Useful time is that of the iterations kept, and of the one that the end cut off.
    assert 0 <= tally.useful_ns - tally.iterations * profile.iteration_ns < profile.iteration_ns


PAPER_JOB = """
name = "paper-job"
cluster = "p4d"
model = "gpt2-100b"
duration = "30d"

[failures]
process = "poisson"
per_day = 6.0
hardware_share = 0.5

[strategies.none]
[strategies.strawman]
[strategies.highfreq]
[strategies.young]
[strategies.daly]
[strategies.checkfreq]
[strategies.gemini]
[strategies.jit]
"""


@pytest.fixture(scope="module")
def paper_job(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    file = tmp_path_factory.mktemp("paper") / "job.toml"
    file.write_text(PAPER_JOB, encoding="utf-8")
    return load_setup(file)


@pytest.fixture(scope="module")
def quiet_job(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    file = tmp_path_factory.mktemp("quiet") / "job.toml"
    nothing = PAPER_JOB.replace('process = "poisson"\nper_day = 6.0', 'process = "none"')
    # Long enough for a checkpoint every three hours, short enough to take each iteration alone.
    nothing = nothing.replace('duration = "30d"', 'duration = "3d"')
    file.write_text(nothing, encoding="utf-8")
    return load_setup(file)


@pytest.mark.parametrize("engine", list(Engine))
def test_without_failures_nothing_is_wasted_but_stalls(quiet_job: Setup, engine: Engine) -> None:
    for name, profile in quiet_job.costs.items():
        tally = run_once(quiet_job, name, 1, engine)
        assert tally.wall_ns == quiet_job.horizon_ns
        assert tally.wasted_ns() == tally.checkpoint_stall_ns
        checkpoints = {
            "memory": tally.iterations // profile.memory_every if profile.memory_every else 0,
            "storage": tally.iterations // profile.storage_every if profile.storage_every else 0,
        }
        most_ns = sum(
            checkpoints[tier] * getattr(profile, f"{tier}_stall_ns") for tier in checkpoints
        )
        last_ns = profile.memory_stall_ns + profile.storage_stall_ns
        assert most_ns - last_ns <= tally.checkpoint_stall_ns <= most_ns
        stalls = profile.memory_stall_ns + profile.storage_stall_ns > 0 and any(
            checkpoints.values()
        )
        assert (tally.wasted_ns() > 0) == stalls
    # Gemini's traffic fits the idle network: a checkpoint every iteration, and no second lost.
    assert run_once(quiet_job, "gemini", 1, engine).wasted_ns() == 0


@pytest.mark.parametrize("strategy", ["none", "strawman", "highfreq", "young", "gemini", "jit"])
def test_a_lower_rate_never_leaves_less_on_the_paper_job(paper_job: Setup, strategy, jump) -> None:
    """Every second, fourth, ... failure of the same run: the real strategies, whose recoveries
    differ in cost, are outside of what is proved; over a month it holds all the same.
    """
    profile = paper_job.costs[strategy]
    for seed in range(20):
        useful = []
        for share in (1, 2, 4, 8):
            blocks = [
                Strikes(
                    block.time_ns[::share],
                    block.machine[::share],
                    block.hardware[::share],
                    block.restore_ns[::share],
                )
                for block in paper_job.strikes(seed)
            ]
            tally: Tally = jump(
                profile,
                paper_job.operations,
                place("group", paper_job.job.machines, 2).replicas,
                blocks,
                horizon_ns=paper_job.horizon_ns,
            )
            useful.append(tally.useful_ns)
        assert useful == sorted(useful), (strategy, seed)
