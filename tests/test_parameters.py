"""Few functions take many values: what belongs together is passed as one (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    *("policy", "records", "configs", "traces", "sim", "runtime", "lab", "analysis", "cli"),
    *("paper_figures", "benchmarks", "examples"),
)
MANY = 10
AT_MOST = 10
"""All are commands, whose options are their parameters."""


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count what a function takes: `self` is none of it, `*args` and `**kwargs` one each."""
    takes = function.args
    named = [one.arg for one in (*takes.posonlyargs, *takes.args, *takes.kwonlyargs)]
    open_ended = [one for one in (takes.vararg, takes.kwarg) if one is not None]
    return len([name for name in named if name not in ("self", "cls")]) + len(open_ended)


def with_many(source: str) -> list[str]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return [one.name for one in found if parameters(one) >= MANY]


def test_the_count_is_of_what_a_caller_gives() -> None:
    nine = ", ".join("abcdefghi")
    assert with_many(f"class C:\n  def f(self, {nine}): pass") == []
    assert with_many(f"async def f({nine}, *rest): pass") == ["f"]
    assert with_many(f"def f(*, {nine}, **rest): pass") == ["f"]


def test_few_functions_take_many_parameters() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for room in ROOMS
        for file in sorted((ROOT / room).rglob("*.py"))
        for name in with_many(file.read_text(encoding="utf-8"))
    }
    assert len(found) <= AT_MOST, "\n".join(["group what belongs together:", *sorted(found)])
    assert all(name.startswith("cli/") for name in found)
