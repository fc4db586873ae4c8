"""Lines of keys, checked against texts laid out at random."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_configs.toml_lines import KeyPath, key_lines, parse_key

VALUES = [
    "1",
    '"a = 1"',
    "'[b]'",
    '"""\n[no.table]\nx = 1\n"quoted" \\""" """',
    "'''\na = 2\n'''",
    "[1, 2]",
    "[[1, 2],\n [3, [4,\n 5]]]",
    '[\n  1, # [c]\n  "]",\n]',
    '{ x = "}", y = [1, 2] }',
    "1979-05-27T07:32:00Z",
    "1.5e3 # comment = 3",
]
SPACE = ["", "\n", "# a = 1\n", "\n# [t]\n\n"]


def test_each_kind_of_key_is_found() -> None:
    text = '''a = 1
b.c = [
  1,
  # not 2,
  { x = 1 }, 3]
[t."q.r"]
d = """
[fake]
e = 1"""
f = 2
[[t.list]]
g = 1
[[t.list]]
g = 2
[t.list.sub]
h = 3
'''
    tomllib.loads(text)
    assert key_lines(text) == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 2,
        ("b", "c", 0): 3,
        ("b", "c", 1): 5,
        ("b", "c", 2): 5,
        ("t", "q.r"): 6,
        ("t", "q.r", "d"): 7,
        ("t", "q.r", "f"): 10,
        ("t", "list"): 11,
        ("t", "list", 0): 11,
        ("t", "list", 0, "g"): 12,
        ("t", "list", 1): 13,
        ("t", "list", 1, "g"): 14,
        ("t", "list", 1, "sub"): 15,
        ("t", "list", 1, "sub", "h"): 16,
    }


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["key", "table", "list"]), st.sampled_from(VALUES), st.integers(0, 3)
        ),
        max_size=12,
    )
)
def test_lines_hold_in_any_layout(parts: list[tuple[str, str, int]]) -> None:
    text, table, lists = "", (), 0
    expected: dict[KeyPath, int] = {}
    for number, (kind, value, space) in enumerate(parts):
        text += SPACE[space]
        line = text.count("\n") + 1
        if kind == "key":
            expected[(*table, f"k{number}")] = line
            text += f"k{number} = {value}\n"
        elif kind == "table":
            table = (f"t{number}",)
            expected[table] = line
            text += f"[t{number}]\n"
        else:
            table = ("l", lists)
            lists += 1
            expected.setdefault(("l",), line)
            expected[table] = line
            text += "[[l]]\n"
    tomllib.loads(text)
    found = key_lines(text)
    elements_only = {path: line for path, line in found.items() if path not in expected}
    assert {path: found.get(path) for path in expected} == expected
    assert all(isinstance(path[-1], int) for path in elements_only)


@pytest.mark.parametrize(
    ("written", "names"),
    [("a", ("a",)), ("a.b . c", ("a", "b", "c")), ('a."b.c"', ("a", "b.c")), ("0.1", ("0", "1"))],
)
def test_dotted_keys(written: str, names: tuple[str, ...]) -> None:
    assert parse_key(written) == names


@pytest.mark.parametrize("written", ["", "a b", "a = 1\nb", "a..b", "[a]\nb"])
def test_what_is_no_key_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_key(written)
