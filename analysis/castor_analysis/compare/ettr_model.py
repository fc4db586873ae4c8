"""A real run's own failures, replayed in the cluster simulator: time ratio and iterations lost.

Taken from the run: when what failed, and when it began and ended. All else is predicted: the
iteration, the checkpoint, the phases of a recovery by its kind. Both sides count alike, from the
end of the first iteration, which is a replayed trace's time 0, to the end of the last:

    effective training time ratio = iterations finished x time of one without failures / wall time
    iterations lost = training that a failure threw away / time of one iteration without failures

The iteration in flight counts as far as it had come. For what was measured, the time of one
iteration is the median over those of the run that do not begin a generation. Where in an iteration
a failure strikes is chance, in the run as in the simulator, whose iterations are never just as
long: the prediction is the mean over `phases` of the iteration.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from castor_analysis.compare.outages import NOBODY, REQUESTED, STANDBY, OutageKind
from castor_analysis.compare.points import ITERATIONS, SHARE, Point, SettingValue, quantile
from castor_analysis.compare.recovery_model import OutageSetting, RecoveryModel
from castor_policy.membership import Lease
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import Failed
from castor_records.events.training import IterationEnded
from castor_records.outages import course_of
from castor_sim.exact_engine import ExactEngine
from castor_sim.strategy_costs import StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally

_NS_PER_S: Final = 1_000_000_000

RANK: Final = OutageKind(failure="rank", source="own_memory")
MACHINE: Final = OutageKind(failure="machine", source="peer", replacement=STANDBY)
MACHINE_ASKED: Final = OutageKind(failure="machine", source="peer", replacement=REQUESTED)


@dataclass(frozen=True, slots=True)
class Blow:
    """One failure: `time_ns` after the end of the first iteration; `hardware`: a lost machine."""

    time_ns: int
    machine: int
    hardware: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a run with failures was, and what it came to.

    Attributes:
        blows: its failures, by time.
        wall_ns: from the end of the first iteration to the end of the last.
        iterations: that were finished meanwhile, each counted once.
        iteration_samples_s: the iterations that no failure touched, rank 0's.
        lost_s: training that failures threw away.
    """

    blows: tuple[Blow, ...]
    wall_ns: int
    iterations: int
    iteration_samples_s: tuple[float, ...]
    lost_s: float

    @property
    def iteration_s(self) -> float:
        """One iteration without failures."""
        return statistics.median(self.iteration_samples_s)

    @property
    def ettr(self) -> float:
        """The measured effective training time ratio."""
        return self.ettr_at(self.iteration_s)

    def ettr_at(self, iteration_s: float) -> float:
        """Return the ratio that the run has if one iteration takes so long without failures."""
        return self.iterations * iteration_s * _NS_PER_S / self.wall_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class EttrPrediction:
    """What the simulator makes of the same failures.

    Attributes:
        ettr: useful over wall time.
        iterations_lost: training thrown away, in iterations.
        tallies: where the time went, of each phase.
    """

    ettr: float
    iterations_lost: float
    tallies: tuple[Tally, ...]


def read_replay(entries: Iterable[Entry[Event]]) -> Replay:
    """Read a run with failures.

    Args:
        entries: its merged log.

    Raises:
        ValueError: it has no two iterations, or a failure that the simulator does not know.
    """
    log = sorted(entries, key=lambda entry: entry.time_ns)
    ended = [entry for entry in of_kind(log, IterationEnded) if entry.event.rank == 0]
    if len(ended) < 2:
        raise ValueError("fewer than two iterations ended: there is no wall time to speak of")
    start_ns, end_ns = ended[0].time_ns, ended[-1].time_ns
    blows = tuple(
        _blow(entry, start_ns)
        for entry in of_kind(log, Failed)
        if start_ns <= entry.time_ns < end_ns
    )
    first = ended[0].event.iteration
    return Replay(
        blows=blows,
        wall_ns=end_ns - start_ns,
        iterations=max(entry.event.iteration for entry in ended) - first,
        iteration_samples_s=_untouched(ended),
        lost_s=sum(one.lost_progress_ns for one in course_of(log).outages) / _NS_PER_S,
    )


def predict_ettr(
    replay: Replay,
    model: RecoveryModel,
    setting: OutageSetting,
    *,
    replicas: Sequence[Sequence[int]],
    checkpoint_s: float,
    standbys: int = 0,
    phases: int = 16,
) -> EttrPrediction:
    """Replay a run's failures in the exact engine, a checkpoint every iteration.

    There is no persistent storage: where both holders of a shard are lost, training starts anew.

    Args:
        replay: whose failures; nothing else of it is looked at but its length.
        model: of the recoveries, fitted on other runs.
        setting: of this run, its iteration time a predicted one.
        replicas: for each machine, the machines that hold its shard, itself first.
        checkpoint_s: from the end of an iteration until its checkpoint is whole, predicted.
        standbys: machines that stood by when it began; each serves once.
        phases: of the iteration in which the replay begins, evenly spread.

    Raises:
        ValueError: the model does not know a recovery that the failures call for.
    """
    # A standby serves once: the machine that is asked for in its place never comes.
    never_ns = 2 * replay.wall_ns
    recovery = _Recovery.of(model, setting, replay.blows, standbys, never_ns)
    iteration_ns = round(setting.iteration_s * _NS_PER_S)
    profile = StrategyCosts(
        iteration_ns=iteration_ns,
        memory_every=1,
        memory_transfer_ns=min(round(checkpoint_s * _NS_PER_S), iteration_ns),
        retrieve_own_ns=recovery.retrieve_own_ns,
        retrieve_peer_ns=recovery.retrieve_peer_ns,
        replicate_ns=round(setting.part_s() * (len(replicas[0]) - 1) * _NS_PER_S),
        warm_up_ns=recovery.warm_up_ns,
    )
    check_costs(profile, positions=len(replicas), horizon_ns=replay.wall_ns)
    operations = Operations(
        positions=len(replicas),
        standbys=standbys,
        activation_ns=recovery.activation_ns,
        **Lease(setting.lease_s).heartbeats()._asdict(),
        exit_ns=recovery.exit_ns,
        unreached_ns=recovery.unreached_ns,
    )
    return over_phases(
        profile, operations, replicas, replay.blows, recovery.restore_ns, replay.wall_ns, phases
    )


def over_phases(
    profile: StrategyCosts,
    operations: Operations,
    replicas: Sequence[Sequence[int]],
    blows: Sequence[Blow],
    restore_ns: Sequence[int],
    wall_ns: int,
    phases: int = 16,
) -> EttrPrediction:
    """Run failures in the exact engine, in each of several phases of the iteration.

    Args:
        profile: what checkpoints and recoveries cost.
        operations: of the cluster.
        replicas: for each machine, the machines that hold its shard, itself first.
        blows: the failures, by time.
        restore_ns: of each failure, until a replacement is there.
        wall_ns: how long the run is.
        phases: of the iteration in which it begins, evenly spread.
    """
    ratios: list[float] = []
    tallies: list[Tally] = []
    for phase in range(phases):
        # As if training had begun so much sooner; that time is taken off again below.
        ahead_ns = profile.iteration_ns * phase // phases
        tally = ExactEngine(
            profile,
            operations,
            replicas,
            _strikes(blows, restore_ns, ahead_ns),
            horizon_ns=wall_ns + ahead_ns,
        ).run()
        ratios.append((tally.useful_ns - ahead_ns) / wall_ns)
        tallies.append(tally)
    lost_ns = statistics.mean(tally.lost_progress_ns for tally in tallies)
    return EttrPrediction(
        ettr=max(0.0, statistics.mean(ratios)),
        iterations_lost=lost_ns / profile.iteration_ns,
        tallies=tuple(tallies),
    )


def ettr_points(
    replay: Replay,
    prediction: EttrPrediction,
    shown: Mapping[str, SettingValue],
    run: str,
) -> list[Point]:
    """Return both points of a replayed run.

    Their spread is what that of the iterations makes of them.
    """
    setting = {**shown, "failures": len(replay.blows)}
    low, high = (quantile(replay.iteration_samples_s, share) for share in (0.1, 0.9))
    return [
        Point(
            quantity="ettr",
            setting=setting,
            unit=SHARE,
            measured=replay.ettr,
            spread=(replay.ettr_at(low), replay.ettr_at(high)),
            simulated=prediction.ettr,
            runs=(run,),
        ),
        Point(
            quantity="iterations_lost",
            setting=setting,
            unit=ITERATIONS,
            measured=replay.lost_s / replay.iteration_s,
            spread=(replay.lost_s / high, replay.lost_s / low),
            simulated=prediction.iterations_lost,
            runs=(run,),
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recovery:
    """Fits every kind's recovery into the engines' one warm-up.

    After retrieval the engines know one warm-up for all kinds. What a kind needs beyond the
    shortest is put before: a trainer's exit is known so much later, a machine comes so much later.
    """

    exit_ns: int
    unreached_ns: int
    activation_ns: int
    restore_ns: tuple[int, ...]
    retrieve_own_ns: int
    retrieve_peer_ns: int
    warm_up_ns: int

    @classmethod
    def of(
        cls,
        model: RecoveryModel,
        setting: OutageSetting,
        blows: Sequence[Blow],
        standbys: int,
        never_ns: int,
    ) -> _Recovery:
        """Predict what these failures call for.

        Args:
            model: of the recoveries.
            setting: of the run.
            blows: its failures.
            standbys: machines that stood by when it began.
            never_ns: longer than the run.

        Raises:
            ValueError: the model does not know one of them.
        """
        used = 0
        kinds: list[OutageKind] = []
        for blow in blows:
            used += blow.hardware
            kinds.append(
                (MACHINE if used <= standbys else MACHINE_ASKED) if blow.hardware else RANK
            )
        phases = {kind: model.predict(kind, setting) for kind in dict.fromkeys(kinds)}
        after = {kind: _after_retrieval_s(one, setting) for kind, one in phases.items()}
        warm_up_s = min(after.values(), default=0.0)

        def before_s(kind: OutageKind) -> float:
            one = phases[kind]
            return one["replacement"] + one["planning"] + after[kind] - warm_up_s

        own_s = phases[RANK]["retrieval"] if RANK in phases else 0.0
        from_peer = [one["retrieval"] for kind, one in phases.items() if kind != RANK]
        exit_s = phases[RANK]["detection"] + before_s(RANK) if RANK in phases else 0.0
        told = MACHINE in phases and not model.kinds[MACHINE].by_lease

        def restore_ns(kind: OutageKind) -> int:
            if kind.replacement == NOBODY:
                return 0
            return never_ns if kind.replacement == STANDBY else _ns(before_s(kind))

        return cls(
            exit_ns=_ns(exit_s),
            unreached_ns=_ns(phases[MACHINE]["detection"]) if told else -1,
            activation_ns=_ns(before_s(MACHINE)) if MACHINE in phases else 0,
            restore_ns=tuple(map(restore_ns, kinds)),
            retrieve_own_ns=_ns(own_s),
            retrieve_peer_ns=_ns(max(from_peer, default=0.0)),
            warm_up_ns=_ns(warm_up_s),
        )


def _after_retrieval_s(phases: Mapping[str, float], setting: OutageSetting) -> float:
    """Return the restart, and what the first iteration takes beyond an ordinary one."""
    return phases["restart"] + max(0.0, phases["first_iteration"] - setting.iteration_s)


def _strikes(blows: Sequence[Blow], restore_ns: Sequence[int], ahead_ns: int) -> list[Strikes]:
    if not blows:
        return []
    return [
        Strikes(
            np.array([blow.time_ns + ahead_ns for blow in blows], np.int64),
            np.array([blow.machine for blow in blows], np.int32),
            np.array([blow.hardware for blow in blows], np.int8),
            np.array(restore_ns, np.int64),
        )
    ]


def _blow(entry: Entry[Failed], start_ns: int) -> Blow:
    target = entry.event.target or ""
    kind = target.partition(":")[0]
    if kind not in ("rank", "machine"):
        raise ValueError(
            f"{target}: the simulator knows trainers that die and machines that are lost; replay "
            "a run that has no other failures"
        )
    machine = -1 if entry.event.machine is None else entry.event.machine
    return Blow(entry.time_ns - start_ns, machine, kind == "machine")


def _untouched(ended: Sequence[Entry[IterationEnded]]) -> tuple[float, ...]:
    """Return rank 0's iterations but for the first of each generation."""
    generation = -1
    found: list[float] = []
    for entry in ended:
        event = entry.event
        if event.generation == generation and event.seconds is not None:
            found.append(event.seconds)
        generation = event.generation
    if not found:
        raise ValueError("no iteration without a failure: nothing says how long one takes")
    return tuple(found)


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)
