"""The Containerfile names what is there: files, extras, pins (it is not built here)."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def steps() -> list[tuple[str, str]]:
    """Return each instruction of the file with its words."""
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    told = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return [(kind, words) for kind, _, words in (line.partition(" ") for line in told)]


def test_what_the_containerfile_copies_and_installs_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {}
    for kind, words in steps():
        if kind == "COPY":
            *sources, target = words.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                copied[source] = target.rstrip("/").removesuffix(f"/{source}")
    rooms = set(project["tool"]["setuptools"]["packages"]["find"]["where"]) - {"."}
    assert rooms | {"paper_figures", "pyproject.toml", "README.md", "LICENSE"} == set(copied)
    (folder,) = set(copied.values())

    run = [words for kind, words in steps() if kind == "RUN"]
    ((extras,),) = [
        re.findall(rf"'{folder}\[([\w,]+)\]'", words) for words in run if folder in words
    ]
    known = project["project"]["optional-dependencies"]
    assert {"runtime", "s3"} <= set(extras.split(",")) <= set(known)
    (torch,) = [one for one in known["runtime"] if one.startswith("torch")]
    (alone,) = [words for words in run if "torch==" in words]
    assert shlex.split(alone)[-1] == torch
    assert run.index(alone) < [folder in words for words in run].index(True)


def test_what_a_pod_runs_is_on_its_path() -> None:
    (made,) = [words for kind, words in steps() if kind == "RUN" and "-m venv" in words]
    (path,) = [words for kind, words in steps() if kind == "ENV"]
    assert path == f"PATH={made.split()[-1]}/bin:$PATH"
    (default,) = [words for kind, words in steps() if kind == "CMD"]
    assert default == '["castor", "--help"]'
