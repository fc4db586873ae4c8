"""Seeds one after another: each a run of `castor train` under its schedule, judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from castor_lab.faults.fault import FaultKind
from castor_lab.soak.schedule import Schedule, draw
from castor_lab.soak.trial import Trial, TrialTimeoutError, train
from castor_policy.agents.exit_codes import REFUSED
from castor_policy.placement import Placement, place
from castor_records.events.training import IterationEnded
from castor_runtime.launcher.run_folder import RunFolder

RANKS: Final = 4
"""Of every shape, so that all end with one and the same state."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How four ranks lie on machines."""

    machines: int
    ranks_per_machine: int
    replicas: int
    standby: int

    @property
    def placement(self) -> Placement:
        """Where replicas belong."""
        return place("mixed", self.machines, self.replicas)

    def options(self) -> list[str]:
        """Return what `castor train` is told of it."""
        return [
            f"--nodes={self.machines}",
            f"--ranks-per-node={self.ranks_per_machine}",
            f"--replicas={self.replicas}",
            f"--standby={self.standby}",
        ]


_FULL: Final = (FaultKind.STORAGEFULL,)
_SMALL_STORAGE: Final = "64m"
"""Of the file system that is filled: room for several checkpoints of the program."""

_SHAPES: Final = (
    (6, Shape(4, 1, 2, 0)),
    (2, Shape(4, 1, 2, 1)),
    (2, Shape(4, 1, 3, 0)),
    (2, Shape(2, 2, 2, 0)),
)


RESTART: Final = "restart"
IN_PLACE: Final = "in place"
WARM: Final = "in place, warm spares"
_RECOVERS: Final = (RESTART, IN_PLACE, WARM)


@dataclass(frozen=True, slots=True)
class Case:
    """What one seed stands for; `recovers`: by a restart of all, or in place."""

    shape: Shape
    schedule: Schedule
    iterations: int
    recovers: str = RESTART

    def needs(self, *kinds: FaultKind) -> bool:
        """Say whether a fault of one of these kinds is among its own."""
        return any(fault.kind in kinds for fault in self.schedule.faults)

    def options(self, persist: Path) -> list[str]:
        """Return the options of `castor train`; `persist` is used where memory may not do."""
        options = ["--lease=3s", *self.shape.options()]
        if not self.schedule.memory_survives or self.needs(FaultKind.STORAGEHANG, *_FULL):
            options += [f"--persist={persist}", "--persist-every=1s"]
        if self.recovers == WARM:
            options.append("--warm-spares")
        for fault in self.schedule.faults:
            options += ["--kill", str(fault)]
        return options

    def program(self, program: Sequence[str]) -> list[str]:
        """Return the script with its options."""
        script, *rest = program
        in_place = [] if self.recovers == RESTART else ["--in-place"]
        return [script, f"--iterations={self.iterations}", *rest, *in_place]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one seed.

    Attributes:
        seed: it.
        faults: its schedule as options of `castor train`.
        shape: machines, ranks on each, replicas and standbys, and how it recovers.
        memory_survives: nothing but the iteration in flight may be lost.
        wrong: what is not as it must be; empty if all is well.
        not_injected: faults that the run was over for.
        recoveries: kind, iterations lost and seconds of each.
        wall_s: of the run, from the launcher's start.
    """

    seed: int
    faults: str
    shape: str
    memory_survives: bool
    wrong: tuple[str, ...]
    not_injected: tuple[str, ...] = ()
    recoveries: tuple[dict[str, Any], ...] = ()
    wall_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def case_of(seed: int, iterations: int) -> Case:
    """Draw the case of a seed; the same one everywhere.

    Raises:
        ValueError: too few iterations.
    """
    rng = random.Random(f"shape {seed}")  # noqa: S311 - a shape, not a secret
    shape = rng.choices([s for _, s in _SHAPES], [weight for weight, _ in _SHAPES])[0]
    schedule = draw(seed, shape.placement, shape.ranks_per_machine, iterations)
    # Drawn apart: the faults of a seed stay what they were.
    way = random.Random(f"way {seed}").choice(_RECOVERS)  # noqa: S311 - no secret either
    return Case(shape, schedule, iterations, way)


def run_seed(
    seed: int,
    folder: Path,
    program: Sequence[str],
    iterations: int,
    sha256: str,
    *,
    keep: bool = False,
) -> Verdict:
    """Run a seed's schedule in `folder` and judge it; the folder is kept if it fails.

    Args:
        seed: of the schedule.
        folder: for the run, its output and its persistent checkpoints; emptied first.
        program: the script and its arguments, but for --iterations; it takes --in-place.
        iterations: how many it trains.
        sha256: of the final state of the same program without failures.
        keep: keep the folder in any case.
    """
    case = case_of(seed, iterations)
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [*case.options(folder / "kept"), *case.program(program)]
    try:
        with small_storage(folder / "kept") if case.needs(*_FULL) else nullcontext():
            trial = train(folder / "run", arguments)
    except TrialTimeoutError as error:
        return _verdict(case, (str(error),))
    verdict = judge(case, trial, sha256)
    if not verdict.wrong and not keep:
        shutil.rmtree(folder)
    return verdict


@contextmanager
def small_storage(folder: Path) -> Iterator[None]:
    """Have `folder` on a small file system of its own, which can be filled; root alone can.

    Without, a fault that fills the storage is told among those that were not injected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_STORAGE}", "castor-soak", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0  # noqa: S603
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)  # noqa: S603, S607


def _came_late(trial: Trial, stranger: str) -> bool:
    """Whether a stranger was let in only when training was over, and had no part in it.

    It takes seconds to come up, and the last iterations less; then it may have the name.
    """
    record = RunFolder(trial.folder).strangers / stranger / "agent.json"
    ended = trial.of(IterationEnded)
    if not ended or not record.is_file():
        return False
    let_in_ns = record.stat().st_mtime_ns - RunFolder(trial.folder).run().started_ns
    machine = json.loads(record.read_text(encoding="utf-8"))["machine"]
    return machine is None and let_in_ns > max(entry.time_ns for entry in ended)


def judge(case: Case, trial: Trial, sha256: str) -> Verdict:
    """Say what is wrong with a run, if anything.

    A job that gives up keeps its checkpoint memory, and result.json says so: that is right of it,
    and `train` has freed it since.
    """
    wrong = []
    if trial.code != 0 or trial.result.get("outcome") != "finished":
        wrong.append(f"exit code {trial.code}: {trial.result.get('reason')}")
    if trial.sha256 != sha256:
        wrong.append(f"final state {trial.sha256}, not {sha256}")
    if trial.result.get("iterations") != case.iterations:
        wrong.append(f"ended at iteration {trial.result.get('iterations')}")
    if trial.processes_left:
        wrong.append(f"left processes: {'; '.join(trial.processes_left)}")
    kept = trial.result.get("kept_memory")
    if trial.memory_left and kept is None:
        wrong.append(f"left in shared memory: {', '.join(trial.memory_left)}")
    if kept is not None and not trial.memory_left:
        wrong.append("result.json says that memory is kept, and none is there")
    wrong += [
        f"{name} was not refused: exit code {code}"
        for name, code in sorted(trial.result.get("strangers", {}).items())
        if code != REFUSED and not (code == 0 and _came_late(trial, name))
    ]
    recoveries = tuple(
        {
            "kind": recovery["kind"],
            "iterations_lost": recovery["iterations_lost"],
            "sources": sorted({source.partition(":")[0] for source in _sources(recovery)}),
            "total_s": recovery["seconds"]["total"],
        }
        for recovery in trial.recoveries
    )
    if case.schedule.memory_survives:
        lost = [one["iterations_lost"] for one in recoveries if one["iterations_lost"]]
        if any(iterations > 1 for iterations in lost):
            wrong.append(f"iterations lost: {lost}; memory should have lost only those in flight")
    return _verdict(
        case,
        tuple(wrong),
        not_injected=tuple(trial.result.get("faults_not_injected", ())),
        recoveries=recoveries,
        wall_s=round(float(trial.result.get("wall_s", 0.0)), 2),
    )


def _sources(recovery: dict[str, Any]) -> list[str]:
    return [str(source) for source in recovery["sources"].values()]


def _verdict(case: Case, wrong: tuple[str, ...], **found: Any) -> Verdict:
    shape = case.shape
    return Verdict(
        seed=case.schedule.seed,
        faults=str(case.schedule),
        shape=f"{shape.machines}x{shape.ranks_per_machine} ranks, "
        f"{shape.replicas} replicas, {shape.standby} standby, {case.recovers}",
        memory_survives=case.schedule.memory_survives,
        wrong=wrong,
        **found,
    )
