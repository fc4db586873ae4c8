"""Plant each fault of mutants.toml in a copy of the tree, and see that its test finds it.

    python tests/mutants/run.py             all of them
    python tests/mutants/run.py --publish   and write docs/mutants.md
    python tests/mutants/run.py --only root one whose file or words contain "root"

Each test first passes on the tree as it stands, in less than `MOST_S` seconds, and must then fail.
Exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.toml")
PAGE = ROOT / "docs" / "mutants.md"
MOST_S = 10.0
"""A test may take so long on the sound code; that of starting Python and pytest is not counted."""

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        breaks: what is wrong then.
        file: that it is planted in.
        old: text that stands there once.
        new: what replaces it.
        test: pytest's name of what finds it.
    """

    breaks: str
    file: str
    old: str
    new: str
    test: str

    def mutated(self, text: str) -> str:
        """Return the file's text with the fault.

        Raises:
            ValueError: `old` does not stand there exactly once.
        """
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.old!r} stands there {times} times, not once")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one.

    Attributes:
        mutant: it.
        passes: whether its test passes on the sound code.
        sound_s: seconds that it takes there.
        killed: whether it fails on the broken code.
        said: the end of what it printed there.
    """

    mutant: Mutant
    passes: bool
    sound_s: float
    killed: bool
    said: str

    @property
    def is_right(self) -> bool:
        """Whether the test finds the fault, soon enough, and nothing without it."""
        return self.passes and self.killed and self.sound_s < MOST_S


def mutants() -> list[Mutant]:
    """Return the list."""
    return [Mutant(**one) for one in tomllib.loads(LIST.read_text())["mutant"]]


def run_one(mutant: Mutant, trees: queue.SimpleQueue[Path]) -> Outcome:
    """Plant one fault in a copy of the tree, and run its test before and after."""
    tree = trees.get()
    path = tree / mutant.file
    sound_text = path.read_text()
    try:
        sound, sound_s, said = _test(tree, mutant.test)
        if sound and sound_s >= MOST_S:  # the first run compiles the sweep engine
            sound, sound_s, said = _test(tree, mutant.test)
        if not sound:
            return Outcome(mutant, passes=False, sound_s=sound_s, killed=False, said=said)
        path.write_text(mutant.mutated(sound_text))
        still, _, said = _test(tree, mutant.test)
        return Outcome(mutant, passes=True, sound_s=sound_s, killed=not still, said=said)
    finally:
        path.write_text(sound_text)
        trees.put(tree)


def _copy(tree: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def _test(tree: Path, test: str) -> tuple[bool, float, str]:
    """Return whether the test passes in `tree`, its seconds, and the end of what it printed."""
    rooms = tomllib.loads((tree / "pyproject.toml").read_text())
    where = rooms["tool"]["setuptools"]["packages"]["find"]["where"]
    paths = os.pathsep.join(str(tree / room) for room in where)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--durations=0", "--durations-min=0"]
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", *test.split()],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, time.monotonic() - began_s, f"no end within {_TIMEOUT_S:g} s"
    times = re.findall(r"^([\d.]+)s (?:setup|call|teardown) ", done.stdout, re.MULTILINE)
    return done.returncode == 0, sum(map(float, times)), done.stdout[-2000:] + done.stderr[-500:]


def page(outcomes: list[Outcome], seconds: float) -> str:
    """Return docs/mutants.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    rows = [
        f"| {one.mutant.breaks} | `{one.mutant.file}` | `{one.mutant.test}` | {one.sound_s:.1f} |"
        for one in outcomes
    ]
    killed = sum(one.is_right for one in outcomes)
    lines = [
        "# Faults that tests find",
        "",
        "A test that cannot fail shows nothing. Each line below is a fault planted in a copy of",
        "the code ([the list](../tests/mutants/mutants.toml), old and new text), and the test that",
        "fails then; the last column is the seconds that it takes on the sound code.",
        "",
        f"Command: `make mutants`. {killed} of {len(outcomes)} found in {seconds:.0f} s, on commit",
        f"{commit}; {platform.python_implementation()} {platform.python_version()}, "
        f"{os.cpu_count()} processors.",
        "",
        "| fault | file | found by | s |",
        "| --- | --- | --- | ---: |",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description="Plant faults, and see that tests find them.")
    parser.add_argument("--only", default="", metavar="TEXT", help="in a mutant's file or words")
    parser.add_argument("--jobs", type=int, default=2, help="at once")
    parser.add_argument("--publish", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    chosen = [one for one in mutants() if arguments.only in f"{one.file} {one.breaks}"]
    began_s = time.monotonic()
    outcomes: list[Outcome] = []
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    with (
        tempfile.TemporaryDirectory(prefix="castor-mutants-") as folder,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        for number in range(arguments.jobs):
            _copy(Path(folder) / str(number))
            trees.put(Path(folder) / str(number))
        planted = pool.map(lambda mutant: run_one(mutant, trees), chosen)
        for number, outcome in enumerate(planted, 1):
            outcomes.append(outcome)
            _tell(number, len(chosen), outcome)
    wrong = [one for one in outcomes if not one.is_right]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} found")
    if arguments.publish and not arguments.only:
        PAGE.write_text(page(outcomes, time.monotonic() - began_s))
    return 1 if wrong else 0


def _tell(number: int, of: int, outcome: Outcome) -> None:
    mutant = outcome.mutant
    if not outcome.passes:
        word = "its test fails on the sound code"
    elif not outcome.killed:
        word = "NOT FOUND"
    elif outcome.sound_s >= MOST_S:
        word = f"found, but the test takes {outcome.sound_s:.1f} s"
    else:
        word = "found"
    print(f"{number:3}/{of} {word}: {mutant.breaks} ({mutant.file})", flush=True)
    if not outcome.is_right:
        print(f"    {mutant.test}\n{outcome.said}", flush=True)
    elif "::" not in mutant.test:
        found = re.search(r"^FAILED (\S+)", outcome.said, re.MULTILINE)
        print(f"    by {found[1] if found else outcome.said}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
