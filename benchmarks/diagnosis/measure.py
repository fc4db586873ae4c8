"""Whether the machine that failed is the one that is named: eight kinds of faults, real processes.

    python benchmarks/diagnosis/measure.py                  200 faults, about 25 minutes on 2 cores
    python benchmarks/diagnosis/measure.py --faults 16      a look
    python benchmarks/diagnosis/measure.py --publish        writes docs/results/diagnosis.* too
    python benchmarks/diagnosis/measure.py --kinds slow odd --faults 20     who is named as odd

Each run is a job of four emulated machines and a standby that one fault after another happens to,
drawn from its seed: the kind, the rank, the moment. Every other run goes on in place, with warm
spares. A fault is judged by what the next generation names, or, of the kinds that end none, by who
is told to be odd: its machine alone is right. Exit code 1 if fewer than 95 % are, or if a machine
was set aside that had not failed three times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from castor_analysis.provenance import provenance
from castor_configs.atomic import write_text
from castor_lab.soak.trial import Running, TrialTimeoutError
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import Detected, SetAside
from castor_records.events.training import IterationEnded, NotFinite, Slow
from castor_runtime.launcher.event_lines import line_of
from castor_runtime.launcher.run_folder import RunFolder

JOB = Path(__file__).resolve().parent / "job.py"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "results"
MACHINES = 4
KINDS = {
    "rank": "a trainer is killed (SIGKILL)",
    "stop": "a trainer is stopped (SIGSTOP)",
    "agent": "an agent is killed",
    "agentstop": "an agent is stopped",
    "machine": "all processes and the memory of a machine are lost",
    "error": "a rank's script raises an exception",
    "leave": "a rank's script exits with code 0",
    "stall": "a rank's script never comes back to training",
}
ODD: dict[str, tuple[str, type[Slow | NotFinite]]] = {
    "slow": ("a rank is 0.25 s late in each iteration", Slow),
    "odd": ("a rank's loss is no number", NotFinite),
}
"""What ends no generation; see `--kinds`."""
OF_THE_SCRIPT = ("error", "leave", "stall")
SET_ASIDE_AFTER = 3
SLOW_LOOKS = 5
GOAL = 0.95
_AFTER = 2
"""Iterations that all ranks end before the next fault."""


@dataclass(frozen=True, slots=True)
class Score:
    """One fault and who was named for it.

    Attributes:
        seed: of the run.
        kind: of the fault.
        way: how the job recovers: "in place" or "restart".
        machine: that it happened to.
        named: machines that the next generation names.
        how: how it was seen.
        cause: in words; "" where nobody was named.
        detection_s: from the blow, or from when the script was told.
        more: generations that followed without another fault.
    """

    seed: int
    kind: str
    way: str
    machine: int
    named: tuple[int, ...]
    how: str
    cause: str
    detection_s: float
    more: int

    @property
    def right(self) -> bool:
        return self.named == (self.machine,)


class Job:
    """One job that faults happen to.

    Args:
        out: its folder.
        seed: of targets and moments, and of the way by which it recovers.
    """

    def __init__(self, out: Path, seed: int) -> None:
        self._seed, self._rng = seed, random.Random(seed)
        self._way = "in place" if seed % 2 else "restart"
        self._told = out / f"told-{seed}"
        for old in (self._told, out / f"run-{seed}"):  # their events would count as this job's
            shutil.rmtree(old, ignore_errors=True)
        self._told.mkdir(parents=True)
        ways = ["--warm-spares"] if seed % 2 else []
        program = [str(JOB), "--told", str(self._told), *(["--restart"] if not ways else [])]
        line = ["--nodes", str(MACHINES), "--standby", "1", "--lease", "3s", "--stall", "3s"]
        line += ["--slow-looks", str(SLOW_LOOKS)]
        self._run = Running(out / f"run-{seed}", ["--overwrite", *line, *ways, *program])
        self._folder = RunFolder(self._run.folder)
        self._struck: Counter[str] = Counter()
        self.wrongly_aside: list[str] = []

    def fault(self, kind: str) -> Score:
        """Have one happen, and return who was named once training has gone on.

        Raises:
            TrialTimeoutError: it did not go on.
        """
        self._wait(lambda seen: _ended_in(seen, _generation(seen)) >= _AFTER, "training")
        time.sleep(self._rng.uniform(0.0, 0.5))
        if kind in ODD:
            return self._odd(kind, self._rng.randrange(MACHINES))
        before = _generation(self._run.events())
        machine = self._rng.randrange(MACHINES)
        struck_ns = self._now_ns()
        if kind in OF_THE_SCRIPT:
            late = self._rng.choice(["", " late"])
            write_text(self._told / f"rank-{machine}", kind + late)
        else:
            self._run.inject(f"{kind}:{machine}@now")
        self._wait(lambda seen: _ended_in(seen, _generation(seen, above=before)) >= 1, "recovery")
        time.sleep(0.5)
        return self._score(kind, machine, before, struck_ns)

    def _odd(self, kind: str, machine: int) -> Score:
        """Have a rank be odd for a while; return who is told to be."""
        _, event = ODD[kind]
        earlier = len(self._told_of(event))
        told, struck_ns = self._told / f"rank-{machine}", self._now_ns()
        write_text(told, kind)
        self._wait(lambda _: len(self._told_of(event)) > earlier, kind)
        told.unlink(missing_ok=True)
        if event is Slow:  # only when that is over it can be told again
            self._wait(lambda _: len(self._told_of(event)) > earlier + 1, "its end")
        time.sleep(0.5)
        found = self._told_of(event)[earlier:]
        return Score(
            seed=self._seed,
            kind=kind,
            way=self._way,
            machine=machine,
            named=tuple(sorted({entry.event.machine for entry in found})),
            how=event.kind,
            cause=(line_of(found[0].event) or ("", ""))[0],
            detection_s=(found[0].time_ns - struck_ns) / 1e9,
            more=0,
        )

    def _told_of(self, kind: type[Slow | NotFinite]) -> list[Entry[Slow | NotFinite]]:
        return list(of_kind(self._run.events(), kind))

    def _now_ns(self) -> int:
        return time.time_ns() - self._folder.run().started_ns

    def close(self) -> None:
        """End it."""
        self._run.kill_all()
        subprocess.run(
            [str(Path(sys.executable).with_name("castor")), "clean", "--job", self._run.job],
            capture_output=True,
            check=False,
        )

    def _score(self, kind: str, machine: int, before: int, struck_ns: int) -> Score:
        events = self._run.events()
        later = [e for e in of_kind(events, Detected) if (e.event.generation or 0) > before]
        first = [e for e in later if e.event.generation == before + 1]
        named = sorted({e.event.machine for e in first if e.event.machine is not None})
        told = next((e for e in first if e.event.machine == machine), first[0])
        if machine in named:
            self._struck[told.event.agent or ""] += 1
        for entry in of_kind(events, SetAside):
            agent = entry.event.agent
            if self._struck[agent] < SET_ASIDE_AFTER and agent not in self.wrongly_aside:
                self.wrongly_aside.append(agent)
        return Score(
            seed=self._seed,
            kind=kind,
            way=self._way,
            machine=machine,
            named=tuple(named),
            how=told.event.how or "",
            cause=told.event.cause or "",
            detection_s=(told.time_ns - struck_ns) / 1e9,
            more=max((e.event.generation or 0 for e in later), default=before + 1) - before - 1,
        )

    def _wait(self, holds: Callable[[Sequence[Entry[Event]]], bool], what: str) -> None:
        self._run.wait_until(lambda: holds(self._run.events()), what, 120)


def _generation(seen: Sequence[Entry[Event]], above: int = 0) -> int:
    """Return the newest generation that has ended an iteration; 0 without one above that."""
    newest = max((e.event.generation for e in of_kind(seen, IterationEnded)), default=0)
    return newest if newest > above else 0


def _ended_in(seen: Sequence[Entry[Event]], generation: int) -> int:
    """Return how many iterations all ranks have ended in a generation."""
    ended: Counter[int] = Counter()
    for entry in of_kind(seen, IterationEnded):
        if generation and entry.event.generation == generation:
            ended[entry.event.iteration] += 1
    return sum(count == MACHINES for count in ended.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--each", type=int, default=20, help="faults of one job")
    parser.add_argument("--seed", type=int, default=1, help="of the first job")
    parser.add_argument("--out", type=Path, default=Path("out/diagnosis"))
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, *ODD], default=[*KINDS], metavar="KIND"
    )
    parser.add_argument("--publish", action="store_true", help="write docs/results too")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> tuple[list[Score], list[str], list[str]]:
    """Return the scores, the machines that were set aside wrongly, and what went wrong."""
    kinds = [*options.kinds] * -(-options.faults // len(options.kinds))
    kinds = kinds[: options.faults]
    random.Random(options.seed).shuffle(kinds)
    scores: list[Score] = []
    aside: list[str] = []
    errors: list[str] = []
    for number, first in enumerate(range(0, len(kinds), options.each)):
        job = Job(options.out, options.seed + number)
        try:
            for kind in kinds[first : first + options.each]:
                scores.append(job.fault(kind))
                print(f"{len(scores):4}  {line(scores[-1])}", file=sys.stderr, flush=True)
        except TrialTimeoutError as error:
            # Whoever would go on without these faults would score himself better than he is.
            errors.append(f"job {options.seed + number}: {str(error)[:2000]}")
            print(errors[-1], file=sys.stderr, flush=True)
        finally:
            job.close()
        aside += job.wrongly_aside
    return scores, aside, errors


def line(score: Score) -> str:
    named = ", ".join(map(str, score.named)) or "nobody"
    verdict = "right" if score.right else f"WRONG: {named}"
    more = f", {score.more} generations more" if score.more else ""
    return (
        f"{score.kind:9} of machine {score.machine}, {score.way:8}: {verdict}, {score.how} "
        f"after {score.detection_s:.2f} s{more}: {score.cause}"
    )


def table(scores: Sequence[Score]) -> list[str]:
    rows = [
        "| fault | faults | right | nobody | another named | seen as | median (s) | most (s) |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    odd = {kind: what for kind, (what, _) in ODD.items()}
    for kind, what in [*KINDS.items(), *odd.items(), ("", "all")]:
        those = [one for one in scores if kind in ("", one.kind)]
        if not those:
            continue
        seen = ", ".join(how for how, _ in Counter(one.how for one in those).most_common())
        times = [one.detection_s for one in those]
        nobody = sum(not one.named for one in those)
        right = sum(one.right for one in those)
        rows.append(
            f"| {what} | {len(those)} | {right} | {nobody} | {len(those) - right - nobody} "
            f"| {seen if kind else ''} | {median(times):.2f} | {max(times):.2f} |"
        )
    return rows


def main() -> None:
    options = arguments()
    began = time.monotonic()
    scores, aside, errors = measure(options)
    right = sum(one.right for one in scores)
    about = {
        "command": shlex.join(["python", "benchmarks/diagnosis/measure.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "provenance": provenance(),
        "faults": options.faults,
        "right": right,
        "set_aside_wrongly": aside,
        "errors": errors,
        "scores": [asdict(one) for one in scores],
    }
    verdict = (
        f"{right} of {options.faults} faults ({right / options.faults:.1%}): their machine alone "
        f"was named; {len(aside)} machines were set aside that had not failed "
        f"{SET_ASIDE_AFTER} times; {sum(one.more > 0 for one in scores)} faults led to more than "
        "one generation"
    )
    page = [
        "# Who is named",
        "",
        f"`{about['command']}`, {about['date']}, commit {provenance()['commit']}, seed "
        f"{options.seed}, {about['seconds']} s; {about['machine']}, Python "
        f"{platform.python_version()}. All values: [diagnosis.json](diagnosis.json).",
        "",
        f"{verdict}.",
        "",
        *table(scores),
        "",
        "Four emulated machines and a standby, lease 3 s, `--stall 3s`; half of the jobs go on in",
        "place, with warm spares. A fault's time is from the blow, or from when its script was",
        "told to misbehave, to the event `detected`.",
        "",
    ]
    print("\n".join(page))
    for folder in (options.out, *([DOCS] if options.publish else [])):
        write_text(folder / "diagnosis.json", json.dumps(about, indent=1) + "\n")
        write_text(folder / "diagnosis.md", "\n".join(page))
    sys.exit(0 if right >= GOAL * options.faults and not aside else 1)


if __name__ == "__main__":
    main()
