"""run.json says what run a folder is of: checked when it is read, and told in docs/formats.md."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_records.reference import meanings_of
from castor_records.run_files import RunFiles
from castor_records.run_record import RunRecord

RECORD = RunRecord(
    job="gpt2",
    run="0123456789abcdef",
    store="etcd://127.0.0.1:2379",
    nodes=2,
    ranks_per_node=1,
    replicas=((0, 1), (1, 0)),
    pid=7,
    agents={"node-0": 8},
    cluster={"name": "two"},
    spec={"job": "gpt2"},
    command=("castor", "train"),
)
PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def read(folder: Path, document: object) -> RunRecord:
    (folder / "run.json").write_text(json.dumps(document), encoding="utf-8")
    return RunFiles(folder).run()


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path, RECORD.to_json()) == RECORD
    assert RECORD.to_json()["schema"] == 1


def test_what_is_missing_has_its_default_and_what_is_unknown_is_left(tmp_path: Path) -> None:
    assert read(tmp_path, {"job": "j", "of_a_later_version": 1}) == RunRecord(job="j")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema: 2; this version of Castor reads 1"),
        ({"pid": "7"}, "pid: expected a whole number, not '7'"),
        ({"pid": True}, "pid: expected a whole number, not True"),
        ({"local_agents": 1}, "local_agents: expected true or false, not 1"),
        ({"agents": []}, "agents: expected an object"),
        ({"command": "castor"}, "command: expected a list"),
        ({"spec": "job"}, "spec: expected an object"),
        ({"job": None}, "job: expected a text, not None"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=rf"run\.json: is damaged: {words}"):
        read(tmp_path, RECORD.to_json() | changes)


def test_the_page_says_of_every_key_what_its_docstring_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    meanings = meanings_of(RunRecord)
    assert list(meanings) == [one.name for one in fields(RunRecord)]
    for name, meaning in meanings.items():
        assert f"| `{name}` | {meaning} |" in page, f"docs/formats.md: | `{name}` | {meaning} |"
