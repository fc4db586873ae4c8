"""What may be set of a job, those of its launch included: all there is in a job file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from castor_configs.toml_lines import KeyPath
from castor_policy.job_options import JobOptions
from castor_policy.option import Option, Options, Unit, key_of, option, options_of

JOB_FILE = ".toml"
"""How a job file's name ends."""

PLACEMENTS = ("mixed", "group", "ring", "domains")


@dataclass(frozen=True, slots=True)
class LaunchOptions(Options):
    """How a job is begun: its size, its name, and where it lies."""

    job: str = option("", Unit.TEXT, "Default: after the script.", metavar="NAME")
    nodes: int = option(
        4, Unit.COUNT, "Machines that train; here each is emulated.", metavar="N", least=1
    )
    ranks_per_node: int = option(1, Unit.COUNT, "Trainers on each machine.", metavar="N", least=1)
    standby: int = option(0, Unit.COUNT, "Machines that wait to replace one.", metavar="N", least=0)
    replicas: int = option(
        2, Unit.COUNT, "Copies of each shard in memory, its own included.", metavar="N", least=1
    )
    placement: str = option("mixed", Unit.TEXT, "Where copies lie.", names=PLACEMENTS)
    domains: str = option(
        "",
        Unit.TEXT,
        "For placement domains, consecutive machines of a rack: 4 of each, or 4,4,3 in turn; not "
        "needed with external agents, which say theirs.",
        metavar="SIZES",
    )
    store: str = option(
        "embedded",
        Unit.TEXT,
        "etcd://HOST:PORT, or embedded: start one.",
        metavar="URL",
    )
    agents: str = option(
        "local",
        Unit.TEXT,
        "external: run castor agent on each machine yourself.",
        names=("local", "external"),
    )
    operator: str = option(
        "",
        Unit.TEXT,
        "With external agents: who brings machines that are asked for, such as "
        "command:./provide.sh.",
        metavar="URL",
        plugins="operators",
    )
    allow_changed_script: bool = option(
        False,
        Unit.FLAG,
        "Agents that come later may have another script; training waits until all machines have "
        "the same.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JobOptions):
    """A job as it was given, checked value by value.

    Attributes:
        script: the training program.
        arguments: its arguments.
        launch: how it is begun.
    """

    script: str
    arguments: tuple[str, ...] = ()
    launch: LaunchOptions = LaunchOptions()


GROUPS: dict[str, type[Options]] = {
    item.name: type(item.default)  # type: ignore[misc]  # each is a group, and has a default
    for item in fields(JobOptions)
}
"""The tables of a job file, by name; those of `LaunchOptions` stand at its top."""

TABLES: dict[str, type[Options]] = {"": LaunchOptions, **GROUPS}


def options_by_key() -> Iterator[tuple[tuple[str, ...], type[Options], str, Option]]:
    """Yield every option that a job has: its key in the file, its group, its field, itself."""
    for table, group in TABLES.items():
        for name, one in options_of(group).items():
            key = key_of(name, one)
            yield (table, key) if table else (key,), group, name, one


@dataclass(frozen=True, slots=True)
class Flag:
    """An option that was given on the command line.

    Attributes:
        key: of the job file.
        flag: as it is called there: "--mu".
        value: what is said, as TOML would have it.
    """

    key: KeyPath
    flag: str
    value: object
