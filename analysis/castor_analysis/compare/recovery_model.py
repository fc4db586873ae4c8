"""How long an outage takes, phase by phase: fitted in one setting, predicted in others.

The phases are those of `castor_records.recoveries`. What each follows from:

    detection        a lost machine: its lease (`Lease`), nothing fitted;
                     else a constant: an agent sees its trainer exit
    replacement      constant; one for machines that stood by, one for those asked for then
    planning         constant: two rounds with the store
    retrieval        constant + one part's bytes over the link where it comes from a peer
    restart          constant + what DeepSpeed sends around when it builds an engine, over the link
                     + loading, in proportion to the part (from storage: and to its bandwidth)
    first_iteration  constant + an iteration in which nothing overlaps: nothing is prefetched yet,
                     and DeepSpeed takes down in which order parameters are used

Each constant is the median over the calibrating outages of one kind.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from castor_analysis.compare.outages import OutageKind, OutageSample
from castor_analysis.compare.settings import job_spec_of
from castor_policy.membership import Lease
from castor_records.result import Result

BROADCASTS: Final = 2
"""Times that `deepspeed.initialize` sends every parameter from rank 0 to all: `_broadcast_model`,
then `_convert_to_zero_parameters` (DeepSpeed 0.19.8, ZeRO-3, a model built without `zero.Init`)."""

GATHERS: Final = 1
"""Times that it then gathers every parameter."""

BUILD_OVERHEAD: Final = 1.45
"""How many times longer this takes than its bytes need at the link's bandwidth: it goes parameter
by parameter, in a tree whose second step waits for the first. Measured once, on 4 ranks with gloo,
for 7.4 and 19.4 MB of parameters at 200 and 400 Mbit/s: 1.37 to 1.59. It belongs to DeepSpeed and
gloo, not to a run: one setting cannot tell it from the constant of the restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageSetting:
    """What the phases of an outage follow from; none of it needs the outage itself.

    Attributes:
        link_bps: of each machine.
        storage_bps: of the persistent storage; 0: there is none.
        ranks: that train.
        part_bytes: one rank's part of a checkpoint.
        parameter_bytes: of the whole model, as ranks send them to each other.
        lease_s: of an agent.
        iteration_s: one iteration without failures, as predicted.
        serial_s: one in which nothing overlaps.

    Raises:
        ValueError: a figure is out of range.
    """

    link_bps: float
    storage_bps: float = 0.0
    ranks: int
    part_bytes: int
    parameter_bytes: int
    lease_s: float
    iteration_s: float
    serial_s: float

    def __post_init__(self) -> None:
        for name in ("link_bps", "ranks", "part_bytes", "parameter_bytes", "lease_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("iteration_s", "serial_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give a time above 0")

    @classmethod
    def of_run(
        cls,
        result: Result,
        *,
        checkpoint_bytes: int,
        iteration_s: float,
        serial_s: float,
    ) -> OutageSetting:
        """Return the setting of a run, of which only what was known before it is taken.

        Args:
            result: what its result.json holds.
            checkpoint_bytes: what one rank sends with a checkpoint.
            iteration_s: one iteration without failures.
            serial_s: one in which nothing overlaps.

        Raises:
            ValueError: it was on no emulated cluster, kept no replicas, or says no job.
        """
        spec, cluster = job_spec_of(result), result.cluster
        copies = len(spec.replicas[0]) - 1
        if not cluster or not copies:
            raise ValueError(
                "a recovery is predicted for a run on an emulated cluster with 2 replicas or more"
            )
        ranks = spec.machines * spec.ranks_per_machine
        part_bytes = checkpoint_bytes // copies
        return cls(
            link_bps=cluster["bandwidth_bps"],
            storage_bps=cluster["storage_bandwidth_bps"] or 0.0,
            ranks=ranks,
            part_bytes=part_bytes,
            parameter_bytes=part_bytes * ranks // _state_over_parameters(spec.arguments),
            lease_s=spec.limits.lease_s,
            iteration_s=iteration_s,
            serial_s=serial_s,
        )

    def part_s(self) -> float:
        """Time of one part over the link."""
        return self.part_bytes * 8 / self.link_bps

    def build_s(self) -> float:
        """Time for the parameters that travel while the engines are built.

        Rank 0 is the root of a binomial tree: it sends each parameter ceil(log2 ranks) times. In
        a gathering each rank sends all parts but one.
        """
        broadcast = BROADCASTS * (self.ranks - 1).bit_length()
        gathered = GATHERS * (self.ranks - 1) / self.ranks
        return BUILD_OVERHEAD * (broadcast + gathered) * self.parameter_bytes * 8 / self.link_bps

    def load_unit(self, source: str) -> float:
        """What loading is in proportion to."""
        if source == "storage":
            if not self.storage_bps > 0:
                raise ValueError("give the storage's bandwidth: a part was loaded from there")
            return self.part_bytes / self.storage_bps
        return float(self.part_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFigures:
    """What was fitted for one kind; seconds, medians over `outages` of them."""

    outages: int
    by_lease: bool
    detection_s: float
    replacement_s: float
    planning_s: float
    retrieval_s: float
    restart_s: float
    load_s_per_unit: float
    first_iteration_s: float


@dataclass(frozen=True, slots=True)
class RecoveryModel:
    """Constants for each kind of outage, and the setting that they were fitted in."""

    setting: OutageSetting
    kinds: Mapping[OutageKind, KindFigures]
    runs: tuple[str, ...]

    def predict(self, kind: OutageKind, setting: OutageSetting) -> dict[str, float]:
        """Return the phases of an outage of `kind` in `setting` and their "total", in seconds.

        Raises:
            ValueError: no calibrating run had an outage of this kind.
        """
        figures = self.kinds.get(kind)
        if figures is None:
            known = "; ".join(sorted(map(str, self.kinds))) or "none"
            raise ValueError(
                f"nothing was fitted for {kind} (there is {known}): give a calibrating run in "
                "which it happens"
            )
        lease = Lease(setting.lease_s)
        loading_s = figures.load_s_per_unit * setting.load_unit(kind.source)
        phases = {
            "detection": lease.mean_s if figures.by_lease else figures.detection_s,
            "interrupted": 0.0,
            "replacement": figures.replacement_s,
            "planning": figures.planning_s,
            "retrieval": figures.retrieval_s + _travel_s(kind, setting),
            "restart": figures.restart_s + setting.build_s() + loading_s,
            "first_iteration": figures.first_iteration_s + setting.serial_s,
        }
        return {**phases, "total": sum(phases.values())}


def calibrate(measured: Sequence[OutageSample], setting: OutageSetting) -> RecoveryModel:
    """Fit the constants to outages that were measured in one setting.

    Raises:
        ValueError: there is none.
    """
    if not measured:
        raise ValueError("no outage to calibrate with: give a run in which something failed")
    by_kind: dict[OutageKind, list[OutageSample]] = {}
    for outage in measured:
        by_kind.setdefault(outage.kind, []).append(outage)
    kinds = {kind: _fitted(kind, alike, setting) for kind, alike in by_kind.items()}
    return RecoveryModel(setting, kinds, tuple(sorted({outage.run for outage in measured})))


def _fitted(kind: OutageKind, alike: Sequence[OutageSample], setting: OutageSetting) -> KindFigures:
    def median(phase: str, less_s: float = 0.0) -> float:
        # A phase that is shorter than what travels in it leaves nothing for the constant.
        return max(0.0, statistics.median(one.seconds[phase] for one in alike) - less_s)

    load_s = statistics.median(one.load_s for one in alike)
    return KindFigures(
        outages=len(alike),
        by_lease=alike[0].by_lease,
        detection_s=median("detection"),
        replacement_s=median("replacement"),
        planning_s=median("planning"),
        retrieval_s=median("retrieval", _travel_s(kind, setting)),
        restart_s=median("restart", setting.build_s() + load_s),
        load_s_per_unit=load_s / setting.load_unit(kind.source),
        first_iteration_s=median("first_iteration", setting.serial_s),
    )


def _travel_s(kind: OutageKind, setting: OutageSetting) -> float:
    """Return how long the own part of a replaced machine is on its way: it goes before others'."""
    return setting.part_s() if kind.source == "peer" else 0.0


def _state_over_parameters(arguments: Sequence[str]) -> int:
    """Return bytes of state a byte of parameters: Adam has 12 for a parameter of 4 or 2 bytes."""
    words = " ".join(arguments).replace("=", " ").split()
    half = any(word in ("bf16", "fp16") for word in words)
    return 6 if half else 3
