"""Who may take part in a job, and in which words it is said."""

from __future__ import annotations

from dataclasses import replace

from castor_policy.agents.admission import (
    Refusal,
    Software,
    largest_of_one_script,
    other_script,
    other_versions,
    scripts_apart,
)
from castor_policy.agents.agent_report import AgentReport

JOB = Software(
    "node-0",
    {"Castor": "0.1.0", "Python": "3.11.7", "torch": "2.9.0"},
    "train.py",
    {"train.py": "aa" * 32, "model.py": "91bcdef0" * 8},
)


def test_the_same_software_may_take_part_whoever_has_it() -> None:
    same = replace(JOB, agent="node-3")
    assert other_versions(same, JOB) == other_script(same, JOB) == ""
    assert same.digest == JOB.digest
    assert Software.from_json(JOB.to_json()) == JOB


def test_other_versions_are_named_with_both() -> None:
    own = replace(JOB, agent="node-3", versions={**JOB.versions, "torch": "2.8.0"})
    assert other_versions(own, JOB) == (
        "node-3: torch 2.8.0 here, 2.9.0 in the job: install the same versions on every machine"
    )


def test_the_files_that_differ_are_named_and_what_to_do() -> None:
    own = replace(JOB, agent="node-3", files={**JOB.files, "model.py": "3f2a1111" * 8})
    assert other_script(own, JOB) == (
        "node-3: train.py differs (model.py: 3f2a1111… here, 91bcdef0… in the job); copy the same "
        "files, or start with --allow-changed-script"
    )
    assert own.digest != JOB.digest
    less = replace(JOB, files={"train.py": JOB.files["train.py"]})
    assert "model.py: not there here, 91bcdef0… in the job" in other_script(less, JOB)
    assert "model.py: 91bcdef0… here, not there in the job" in other_script(JOB, less)


def test_a_plugin_that_differs_is_named_as_a_file_of_the_script_is() -> None:
    job = replace(JOB, plugins={"scheme own, own.py": "ab" * 32})
    other = replace(job, agent="node-3", plugins={"scheme own, own.py": "cd" * 32})
    assert other_script(other, job) == (
        "node-3: a plugin differs (scheme own, own.py: cdcdcdcd… here, abababab… in the job); copy "
        "the same files, or start with --allow-changed-script"
    )
    assert "not there here, abababab… in the job" in other_script(JOB, job)
    both = replace(other, files={"train.py": "bb" * 32})
    assert other_script(both, job).startswith("node-3: train.py differs (model.py: not there here")
    assert len({JOB.digest, job.digest, other.digest}) == 3


def test_a_name_and_a_content_that_change_places_change_the_digest() -> None:
    swapped = replace(JOB, files=dict(zip(JOB.files, reversed(JOB.files.values()), strict=True)))
    assert swapped.digest != JOB.digest


def report(agent: str, script: str) -> AgentReport:
    return AgentReport(agent, "i1", False, "h:1", script=script)


def test_machines_with_several_scripts_are_named_most_of_them_first() -> None:
    reports = [report("node-1", "3f" * 32), report("node-0", "91" * 32), report("b", "91" * 32)]
    assert scripts_apart(reports) == (
        "a changed script holds for all machines or for none: node-0, b: 91919191…; "
        "node-1: 3f3f3f3f…"
    )
    assert scripts_apart(reports[1:]) == ""
    assert largest_of_one_script(reports) == reports[1:]
    assert largest_of_one_script([]) == []


def test_a_refusal_is_read_as_it_was_written() -> None:
    refusal = Refusal("node-3", "far", "is not the secret of this job", 5)
    assert Refusal.from_json(refusal.to_json()) == refusal
