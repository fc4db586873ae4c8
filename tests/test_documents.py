"""What the repository says of itself: documents, files and invariants that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from castor_sim.explore.invariants import INVARIANTS

ROOT = Path(__file__).resolve().parents[1]

_TEXT = frozenset((".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".cff", ".cfg", ""))
_DOCUMENT = re.compile(r"(?<![\w./-])[\w./-]*\w\.md\b")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NOT_HERE = re.compile(r"\b(?:DESIGN|PAPER|STYLE|PEERS)(?:'s\b| (?:\d|sec|invariant|file))")
"""Documents of those who build Castor, which its readers do not have."""

_OTHERS = frozenset(("SOURCE.md",))
"""Beside data sets that are not part of the repository."""

_OF_THE_PAST = frozenset(("CHANGELOG.md",))
"""May name what has gone."""

_FOLDERS = [
    *("policy", "records", "configs", "traces", "sim", "runtime", "lab", "analysis", "cli"),
    *("paper_figures", "benchmarks", "tests", "docs", "examples"),
]
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(_FOLDERS)})/[\w./*-]*[\w*/]")
_MODULE = re.compile(r"\bcastor_[a-z]+(?:\.\w+)+")
_ERRATUM = re.compile(r"docs/paper\.md, (E\d+)(?:, (E\d+))?")


def texts() -> list[Path]:
    """Every text file of the repository, this one left out."""
    inside = (file for folder in _FOLDERS for file in (ROOT / folder).rglob("*"))
    files = (*ROOT.iterdir(), *inside)
    return [f for f in files if f.suffix in _TEXT and f.is_file() and f != Path(__file__)]


def missing_documents(file: Path, text: str, root: Path) -> list[str]:
    """Return the documents that a file speaks of and that are not in the repository."""
    found = list(_NOT_HERE.findall(text))
    near = (root, file.parent, root / "docs", root / "docs" / "results")
    for name in _DOCUMENT.findall(text):
        if name in _OTHERS or name.startswith("//"):
            continue
        if not any((folder / name).is_file() for folder in near):
            found.append(name)
    return found


def missing_targets(page: Path, text: str, root: Path) -> list[str]:
    """Return the links, paths and modules of a page that are not in the repository."""
    links = [link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link]
    found = [link for link in links if link and not (page.parent / link).exists()]
    for name in _PATH.findall(text):
        patterns = (name.rstrip("/"), f"{name}.py")
        if not any(any(near.glob(one)) for near in (root, page.parent) for one in patterns):
            found.append(name)
    return [*found, *(name for name in _MODULE.findall(text) if not _is_module(name, root))]


def _is_module(name: str, root: Path) -> bool:
    """Whether a dotted name is a module of a room, or what one of them defines."""
    package, *rest = name.split(".")
    for room in root.iterdir():
        at = room / package
        for index, part in enumerate(rest):
            for module in (at / f"{part}.py", at / part / "__init__.py"):
                if module.is_file() and index < len(rest) - 1:
                    if re.search(rf"\b{rest[index + 1]}\b", module.read_text(encoding="utf-8")):
                        return True
                elif module.is_file():
                    return True
            init = at / "__init__.py"
            if init.is_file() and re.search(rf"\b{part}\b", init.read_text(encoding="utf-8")):
                return True
            at = at / part
    return False


def test_no_file_speaks_of_a_document_that_is_not_here() -> None:
    found = {
        str(file.relative_to(ROOT)): missing
        for file in texts()
        if (missing := missing_documents(file, file.read_text(encoding="utf-8"), ROOT))
    }
    assert not found, found


def test_pages_name_only_files_and_modules_that_are_here() -> None:
    pages = [f for f in texts() if f.suffix == ".md" and f.name not in _OF_THE_PAST]
    assert len(pages) > 20
    found = {
        str(page.relative_to(ROOT)): missing
        for page in pages
        if (missing := missing_targets(page, page.read_text(encoding="utf-8"), ROOT))
    }
    assert not found, found


def missing_modules(readme: Path, text: str) -> list[str]:
    """Return the modules that the tables of a room's README list and that its package lacks."""
    packages = [p for p in readme.parent.iterdir() if (p / "__init__.py").is_file()]
    tables = re.findall(r"^\| (?:[Mm]odule|package|room) \|.*\n((?:\|.*\n?)*)", text, re.M)
    listed = [
        name
        for table in tables
        for cell in re.findall(r"^\| (`[^|]*?) \|", table, re.M)
        for name in re.findall(r"`([a-z_./]+)`", cell)
    ]
    return [
        name
        for name in listed
        if not any(
            (package / (name.rstrip("/").removesuffix(".py").replace(".", "/") + end)).exists()
            for package in packages
            for end in (".py", "")
        )
    ]


def test_the_modules_that_a_rooms_readme_lists_are_there() -> None:
    found = {
        room: missing_modules(readme, readme.read_text(encoding="utf-8"))
        for room in ("policy", "records", "traces", "sim", "runtime", "lab", "analysis")
        if (readme := ROOT / room / "README.md").is_file()
    }
    assert set(found) >= {"policy", "sim", "runtime"}
    assert not any(found.values()), found
    table = "| module | holds |\n| --- | --- |\n| `run`, `nobody` | both |\n"
    assert missing_modules(ROOT / "sim" / "README.md", table) == ["nobody"]


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("as DESIGN.md says", 1),
        ("(PAPER.md 5b-1)", 1),
        ("(DESIGN invariant 2)", 1),
        ("see docs/no-such-page.md", 1),
        ("see docs/formats.md and CONTRIBUTING.md", 0),
    ],
)
def test_a_reference_to_what_is_not_here_is_found(line: str, missing: int) -> None:
    assert len(missing_documents(ROOT / "README.md", line, ROOT)) == missing


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("[a page](docs/none.md)", 2),
        ("`tests/sim/test_theory_*.py` and `tests/cluster`", 0),
        ("`tests/sim/test_nothing.py`", 1),
        ("`castor_policy.agents.culprit`, `castor_policy.interleaving.SCHEMES`", 0),
        ("`castor_policy.nobody`", 1),
        ("`castor_policy.interleaving.NOTHING_OF_THE_KIND`", 1),
    ],
)
def test_a_page_that_names_what_is_not_here_is_found(line: str, missing: int) -> None:
    assert len(missing_targets(ROOT / "README.md", line, ROOT)) == missing


def test_the_explorers_invariants_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)
    rows = {int(number): text for number, text in found}
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    assert {number: rows.get(number) for number in INVARIANTS} == INVARIANTS


def test_errata_that_the_code_names_are_on_the_papers_page() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (E\d+) \|", page, re.M))
    named = {
        number
        for file in texts()
        for match in _ERRATUM.findall(file.read_text(encoding="utf-8"))
        for number in match
        if number
    }
    assert named
    assert named <= listed
