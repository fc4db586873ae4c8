"""What becomes of a run's checkpoint memory on the launcher's machine, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_runtime.arena.leftovers import (
    agents_with_checkpoints,
    mark_kept,
    newest_whole,
    segments,
)
from castor_runtime.arena.removal import remove_run


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """Checkpoint memory of a run that has ended and can go on.

    Attributes:
        run: which run.
        iteration: the newest iteration that is whole on this machine; 0 if other machines are
            needed, or it is not known here.
        bytes: of memory on this machine.
        resume: the command that goes on.
        clean: the command that frees it, on each machine.
    """

    run: str
    iteration: int
    bytes: int
    resume: str
    clean: str

    def to_json(self) -> dict[str, Any]:
        """Return it as result.json has it."""
        return {name: getattr(self, name) for name in self.__slots__}

    def words(self) -> str:
        """Return what to tell the user."""
        what = f"from iteration {self.iteration}" if self.iteration else "from what its agents keep"
        return (
            f"checkpoint memory is kept; to go on {what}: {self.resume}; to free it, on every "
            f"machine: {self.clean}"
        )


def settle(
    spec: JobSpec, home: Path, outcome: str, reason: str, *, elsewhere: int = 0
) -> KeptMemory | None:
    """Free a run's memory, or mark it as kept, once its processes here are gone.

    A run that finished needs it no more, and who stops or interrupts one has said so. Any other
    end is no reason to lose what is complete.

    Args:
        spec: the job.
        home: the run's folder.
        outcome: see `Outcome`; "" if it did not come so far as to have one.
        reason: of a failure.
        elsewhere: newest iteration that is complete in the memory of other machines, whose agents
            keep, or free, it themselves; 0 for none.
    """
    if outcome in ("finished", "stopped", "interrupted"):
        remove_run(spec.job, spec.run)
        return None
    held = agents_with_checkpoints(spec.job, spec.run)
    if held:
        mark_kept(spec.job, spec.run, str(home), reason)
    else:
        remove_run(spec.job, spec.run)
    if not held and not elsewhere:
        return None
    ranks = spec.machines * spec.ranks_per_machine
    size = sum(s.bytes for s in segments() if s.jobs == (spec.job,) and s.run == spec.run)
    return KeptMemory(
        spec.run,
        newest_whole(held, ranks) or elsewhere,
        size,
        f"castor resume {home}",
        f"castor clean --job {spec.job}",
    )


def agents_to_resume(spec: JobSpec) -> tuple[int, list[str]]:
    """Return the iteration to go on from and the agents to start on this machine, by name.

    Those that hold something come first, whatever their names; machines beyond get new names.

    Raises:
        InputError: no iteration of this run is whole here any more.
    """
    held = agents_with_checkpoints(spec.job, spec.run)
    iteration = newest_whole(held, spec.machines * spec.ranks_per_machine)
    if not iteration:
        storage = "; its persistent checkpoints remain: `castor train` goes on from them"
        raise InputError(
            f"no whole checkpoint of run {spec.run} of job {spec.job} is in this machine's memory: "
            "it was freed, or the machine was restarted"
            + (storage if spec.persistence.tiers else "")
        )
    names = sorted(held)
    unused = (f"node-{n}" for n in range(2 * spec.machines) if f"node-{n}" not in held)
    names += [next(unused) for _ in range(spec.machines - len(names))]
    return iteration, names
