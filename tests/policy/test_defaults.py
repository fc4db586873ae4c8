"""Each default stands once: in `castor_policy.defaults`, or beside what it decides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("policy", "configs", "records", "traces", "sim", "runtime", "lab", "analysis", "cli")
HOMES = ("castor_policy/defaults.py", "castor_policy/membership.py")
NAMES = {
    "mu",
    "sub_buffers",
    "buffer", "buffer_bytes",
    "shortest_span", "shortest_span_s", "shortest_span_ns",
    "profile_iterations", "profiled", "profiled_iterations",
    "chunk", "chunk_bytes",
    "checkpoint_every",
    "persist_every", "persist_every_s",
    "lease", "lease_s",
    "hang", "hang_s",
    "stall_factor", "stall", "stall_s", "startup", "startup_s",
    "MU", "SUB_BUFFERS", "RENEWALS", "CHUNK_BYTES",
    "network_efficiency", "checkpoint_efficiency",
}  # fmt: skip


def defaults_in(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Every name that is given a value where nobody says otherwise: fields and arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value
        elif isinstance(node, ast.Assign):
            yield from ((ast.unparse(target), node.value) for target in node.targets)
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            given = named[len(named) - len(node.defaults) :] if node.defaults else []
            yield from ((a.arg, d) for a, d in zip(given, node.defaults, strict=True))
            keywords = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            yield from ((a.arg, d) for a, d in keywords if d is not None)


def written_out(value: ast.expr) -> bool:
    """Whether it is a figure, with a unit or without; 0, "" and None say nothing."""
    nodes = list(ast.walk(value))
    if not all(isinstance(node, ast.Constant | ast.BinOp | ast.operator) for node in nodes):
        return False
    figures = [node.value for node in nodes if isinstance(node, ast.Constant) and node.value]
    return any(not isinstance(one, str) or one[:1].isdecimal() for one in figures)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("mu: float = 0.9", ["mu"]),
        ("def f(*, mu: float = 0.9, sub_buffers=4): pass", ["mu", "sub_buffers"]),
        ("RENEWALS = 4", ["RENEWALS"]),
        ("def f(lease='5s'): pass", ["lease"]),
        ("chunk_bytes: int = 16 << 20", ["chunk_bytes"]),
        ("mu: float = defaults.MU\nbuffer: str = ''\nhang_s = found.hang_s", []),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, found: list[str]) -> None:
    assert second_homes(ast.parse(source)) == found


def second_homes(tree: ast.AST) -> list[str]:
    return [name for name, value in defaults_in(tree) if name in NAMES and written_out(value)]


def test_no_room_writes_a_default_out_a_second_time() -> None:
    again = {}
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if file.as_posix().endswith(HOMES):
                continue
            if found := second_homes(ast.parse(file.read_text(encoding="utf-8"))):
                again[file.relative_to(ROOT).as_posix()] = found
    assert again == {}
