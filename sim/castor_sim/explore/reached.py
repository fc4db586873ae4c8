"""What exploring has reached: branches of the policy's machines, and pairs of faults.

The branches are those of `if`, `while`, `for` and `match` in the modules that decide. They are seen
by tracing the lines of these modules alone, which makes a schedule several times slower.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from castor_policy import agents, checkpoint_memory, recovery
from castor_sim.explore.schedule import FAULTS, PHASES

Arc = tuple[str, int, int]
"""(file, line, the line that came next in the same call; 0: the call ended)."""

Strike = tuple[str, str]
"""(kind of a fault, phase of the job when it struck)."""


@dataclass(slots=True)
class Reached:
    """What some schedules have reached; adds up over processes.

    Attributes:
        arcs: steps from line to line.
        pairs: how often a fault of one kind was followed by another, by kinds and phase.
    """

    arcs: set[Arc] = field(default_factory=set)
    pairs: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, other: Reached) -> None:
        """Take in what others have reached."""
        self.arcs |= other.arcs
        self.pairs.update(other.pairs)

    def struck(self, strikes: Sequence[Strike]) -> None:
        """Take in which faults struck in one schedule, in their order."""
        for index, (kind, _) in enumerate(strikes):
            self.pairs.update({(kind, *other) for other in strikes[index + 1 :]})

    def unseen_pairs(self, kinds: Sequence[str]) -> list[tuple[str, str, str]]:
        """Return the pairs of kinds and phases of which none has struck."""
        phases = [phase for phase in PHASES if phase]
        paired = [kind for kind in kinds if kind in FAULTS]
        every = [(one, other, phase) for one in paired for other in paired for phase in phases]
        return [pair for pair in every if not self.pairs[pair]]

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Note every step in the modules that decide."""
        files = {str(module.__file__) for module in modules()}
        arcs = self.arcs

        def begun(frame: FrameType, _event: str, _argument: Any) -> Any:
            code = frame.f_code
            if code.co_filename not in files:
                return None
            name, last = code.co_filename, frame.f_lineno

            def stepped(inner: FrameType, event: str, _argument: Any) -> Any:
                nonlocal last
                if event == "line":
                    arcs.add((name, last, inner.f_lineno))
                    last = inner.f_lineno
                elif event == "return":
                    arcs.add((name, last, 0))
                return stepped

            return stepped

        before = sys.gettrace()
        sys.settrace(begun)
        try:
            yield
        finally:
            sys.settrace(before)


@dataclass(frozen=True, slots=True)
class Branch:
    """One way on from a line that has several.

    Attributes:
        file: of the module.
        line: where the ways part.
        way: "taken" or "not taken", of its condition, case or loop.
    """

    file: str
    line: int
    way: str


@lru_cache(maxsize=1)
def modules() -> tuple[ModuleType, ...]:
    """Return the modules that decide: all of `castor_policy.agents` that an agent runs."""
    folder = Path(inspect.getfile(agents)).parent
    values = {"documents", "job_spec", "plan", "agent_report", "store_keys", "events", "effects"}
    told = {*values, "__init__", "event_table", "transitions"}  # they decide nothing
    names = sorted(file.stem for file in folder.glob("*.py") if file.stem not in told)
    found = [sys.modules.get(f"{agents.__name__}.{name}") for name in names]
    return (*(module for module in found if module is not None), checkpoint_memory, recovery)


def branches(module: ModuleType) -> list[tuple[Branch, set[int], set[int]]]:
    """Return a module's branches, each with the lines it leaves and the lines it comes to.

    An empty set of lines to come to stands for all but those of the way taken.
    """
    file = str(module.__file__)
    found: list[tuple[Branch, set[int], set[int]]] = []
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.If | ast.While):
            test = set(range(node.test.lineno, (node.test.end_lineno or 0) + 1))
            body = _first_lines(node.body)
            found.append((Branch(file, node.lineno, "taken"), test, body))
            found.append((Branch(file, node.lineno, "not taken"), test, set()))
        elif isinstance(node, ast.For):
            test = set(range(node.lineno, (node.iter.end_lineno or 0) + 1))
            found.append((Branch(file, node.lineno, "taken"), test, _first_lines(node.body)))
        elif isinstance(node, ast.match_case):
            test = set(range(node.pattern.lineno, (node.pattern.end_lineno or 0) + 1))
            if node.guard is not None:
                test |= set(range(node.guard.lineno, (node.guard.end_lineno or 0) + 1))
            line = node.pattern.lineno
            found.append((Branch(file, line, "taken"), test, _first_lines(node.body)))
    return found


def unreached(module: ModuleType, arcs: set[Arc]) -> tuple[int, list[Branch]]:
    """Return how many branches a module has, and those that were not reached."""
    file = str(module.__file__)
    ways: dict[int, set[int]] = {}
    for name, begin, end in arcs:
        if name == file:
            ways.setdefault(begin, set()).add(end)
    left: list[Branch] = []
    every = branches(module)
    taken: dict[int, set[int]] = {branch.line: to for branch, _, to in every if to}
    for branch, test, to in every:
        came = {end for line in test for end in ways.get(line, ())}
        on = came & to if to else came - test - taken[branch.line]
        if not on:
            left.append(branch)
    return len(every), left


def _first_lines(body: Sequence[ast.stmt]) -> set[int]:
    first = body[0]
    return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
