"""Which part comes from where, and what to do when a source fails: the ladder of one machine.

The plan has fixed the iteration for all ranks; here only sources change (invariants 5 and 7).
Own memory is read against its checksums before it is offered, then the peers that the plan names
are asked, all at once that no other rank waits for, then the rest. A rank whose every source has
failed ends the generation: the next one is planned without the copies that were found bad.
"""

from __future__ import annotations

from collections.abc import Mapping

from castor_policy.agents.effects import Fetch, Log, Offer, Verify, WorkerEffect
from castor_policy.agents.events import Fetched, FetchFailed, TrainerRefused, Verified
from castor_policy.agents.evidence import SightKind
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.recovery import Tier, sources_at_once
from castor_records.events.failures import Corrupt, Retrieved


class PartLoading:
    """Brings every part that belongs on one machine into its memory, in one generation.

    Args:
        spec: the job.
        plan: in phase LOAD.
        machine: this machine.
        holdings: what its memory held when it was inspected.

    Attributes:
        failed: why a rank of this machine cannot be loaded; "" while it can.
        whole: every part that belongs here is here.
    """

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        machine: int,
        holdings: Mapping[int, tuple[int, ...]],
    ) -> None:
        self.failed = ""
        self._unreached = False
        self._damaged = False
        self.whole = plan.tier in (Tier.OWN_MEMORY, Tier.PEER)
        self._spec = spec
        self._plan = plan
        self._machine = machine
        self._own = frozenset(spec.ranks_of(machine))
        self._held = {r for r, iterations in holdings.items() if plan.iteration in iterations}
        self._open: set[int] = set()
        self._sources: dict[int, list[int]] = {}
        self._later: list[Fetch] = []

    @property
    def settled(self) -> bool:
        """Whether every part is here, or found to be nowhere."""
        return not self._open and not self.failed

    @property
    def kind(self) -> SightKind:
        """What `failed` is: no source was reached, or none had the part intact."""
        alone = self._unreached and not self._damaged
        return SightKind.FETCH if alone else SightKind.CORRUPT

    def begin(self) -> list[WorkerEffect]:
        """Return the first steps; own parts before the replicas of others."""
        plan = self._plan
        if plan.tier not in (Tier.OWN_MEMORY, Tier.PEER):
            return [self._offer(rank, plan.tier) for rank in sorted(self._own)]
        effects: list[WorkerEffect] = []
        for rank in self._spec.ranks_held_by(self._machine):
            shard = rank // self._spec.ranks_per_machine
            self._sources[rank] = [m for m in plan.sources[shard] if m != self._machine]
            if rank not in self._held:
                self._open.add(rank)
                effects += self._next_sources(rank, "not in own memory")
            elif rank in self._own:
                self._open.add(rank)
                effects.append(Verify(plan.generation, rank, plan.iteration))
        return effects

    def handle(
        self, event: Verified | Fetched | FetchFailed | TrainerRefused
    ) -> list[WorkerEffect]:
        """Take an answer in and return the next steps."""
        return [*self._take(event), *self._unless_own_are_open()]

    def give_up_fetching(self) -> None:
        """Be settled without what is still being fetched: a newer checkpoint is whole instead."""
        self._open.clear()
        self._sources.clear()
        self._later.clear()

    def _take(self, event: Verified | Fetched | FetchFailed | TrainerRefused) -> list[WorkerEffect]:
        rank = event.rank
        match event:
            case Verified(_, _, True):
                self._open.discard(rank)
                found = self._retrieved(rank, "own_memory", self._machine, 0, 0.0)
                return [found, self._offer(rank, Tier.OWN_MEMORY)]
            case Verified() | TrainerRefused():
                self._open.add(rank)
                self._damaged |= rank in self._own
                return [self._corrupt(rank), *self._next_sources(rank, "own copy is corrupt")]
            case Fetched(_, _, sources, size_bytes, seconds):
                self._open.discard(rank)
                name = "peer:" + ",".join(self._plan.agents[source] for source in sources)
                found = self._retrieved(rank, name, sources[0], size_bytes, seconds)
                return [found, self._offer(rank, Tier.PEER)] if rank in self._own else [found]
            case FetchFailed(_, _, reason, unreached):
                if rank in self._own:
                    self._unreached |= unreached
                    self._damaged |= not unreached
                return self._next_sources(rank, reason)

    def _next_sources(self, rank: int, why: str) -> list[WorkerEffect]:
        left = self._sources.get(rank, [])
        if left:
            shard = rank // self._spec.ranks_per_machine
            sources = sources_at_once(self._plan.sources, shard, left)
            self._sources[rank] = [machine for machine in left if machine not in sources]
            fetch = Fetch(
                self._plan.generation,
                rank,
                self._plan.iteration,
                sources,
                tuple(self._plan.addresses[machine] for machine in sources),
                urgent=rank in self._own,
            )
            if fetch.urgent:
                return [fetch]
            # Trainers wait for own parts; those of others only make redundancy whole again.
            self._later.append(fetch)
            return self._unless_own_are_open()
        self._open.discard(rank)
        if rank in self._own:
            self.failed = (
                f"no source is left for rank {rank} at iteration {self._plan.iteration}: {why}"
            )
        # A replica of another's part that cannot be had is made again by the next checkpoint.
        self.whole = False
        return []

    def _unless_own_are_open(self) -> list[WorkerEffect]:
        """Return the fetches that were put off, once no part of an own rank is under way."""
        if self._open & self._own or self.failed:
            return []
        begun: list[WorkerEffect] = list(self._later)
        self._later.clear()
        return begun

    def _offer(self, rank: int, tier: str) -> Offer:
        return Offer(self._plan.generation, rank, self._plan.iteration, str(tier))

    def _corrupt(self, rank: int) -> Log:
        plan = self._plan
        return Log(
            Corrupt(
                machine=self._machine,
                rank=rank,
                iteration=plan.iteration,
                generation=plan.generation,
            )
        )

    def _retrieved(
        self, rank: int, source: str, machine: int, size_bytes: int, seconds: float
    ) -> Log:
        return Log(
            Retrieved(
                generation=self._plan.generation,
                machine=self._machine,
                rank=rank,
                own=rank in self._own,
                iteration=self._plan.iteration,
                source=source,
                source_machine=machine,
                bytes=size_bytes,
                seconds=seconds,
            )
        )
