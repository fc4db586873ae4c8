"""Who may take part in a job: the same secret, the same versions, the same script and scheme.

An agent looks at this before it claims its name, so that who cannot do the work is never listed and
never counted as a standby. What it finds wrong it tells its own operator, and leaves as a `Refusal`
in the store for everybody who asks for the job's status.

1. The job's software is that of its first agent, written once.
2. Castor, Python and torch must be the same everywhere: there is no option for those.
3. A changed script takes an option. It then holds for all or for none: no generation trains before
   all of its machines have the same one (`Root`). What has trained last is the job's from then on.
   The plugin that a job's scheme is counts as the script does: it says what is sent when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.documents import Document
from castor_policy.agents.store_keys import job_prefix

SHORT = 8
"""Hexadecimal digits of a digest that people are shown."""


@dataclass(frozen=True, slots=True)
class Software(Document):
    """What an agent runs.

    Attributes:
        agent: whose.
        versions: of Castor, Python and torch, by name.
        script: name of the training program's file.
        files: SHA-256 of the script and of what it imports from its own folder, by path from there.
        plugins: SHA-256 of the files of each plugin that the job goes by, by what it is and its
            file's name; of none where it goes by Castor's own.
    """

    agent: str
    versions: Mapping[str, str] = field(default_factory=dict)
    script: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One digest of the script, all its files and the plugins'."""
        every = {**self.files, **self.plugins}
        lines = (f"{name}\0{digest}\n" for name, digest in sorted(every.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Refusal(Document):
    """An agent that may not take part.

    Attributes:
        agent: its name.
        host: its machine's.
        reason: why, for people.
        since_ns: CLOCK_REALTIME.
    """

    agent: str
    host: str
    reason: str
    since_ns: int


def software_prefix(job: str) -> str:
    """Prefix of the `Software`s that are known, written once each."""
    return f"{job_prefix(job)}software/"


def software_key(job: str) -> str:
    """Key of the `Software` of the job's first agent."""
    return f"{software_prefix(job)}first"


def script_key(job: str, digest: str) -> str:
    """Key of a `Software` with the script of this digest."""
    return f"{software_prefix(job)}{digest}"


def credentials_key(job: str) -> str:
    """Key of the mark of the first agent's credentials."""
    return f"{job_prefix(job)}credentials"


def refused_prefix(job: str) -> str:
    """Prefix of the `Refusal`s, one key an agent."""
    return f"{job_prefix(job)}refused/"


def other_versions(own: Software, job: Software) -> str:
    """Say in which versions `own` differs from the job's; "" if in none."""
    names = sorted({*own.versions, *job.versions})
    differing = [
        f"{name} {own.versions.get(name, 'none')} here, {job.versions.get(name, 'none')} in the job"
        for name in names
        if own.versions.get(name) != job.versions.get(name)
    ]
    if not differing:
        return ""
    return f"{own.agent}: {'; '.join(differing)}: install the same versions on every machine"


def other_script(own: Software, job: Software) -> str:
    """Say in which files `own`'s script or plugins differ from the job's; "" if in none."""
    script, plugins = _differing(own.files, job.files), _differing(own.plugins, job.plugins)
    if not script and not plugins:
        return ""
    what = own.script if script else "a plugin"
    return (
        f"{own.agent}: {what} differs ({'; '.join([*script, *plugins])}); copy the same files, "
        "or start with --allow-changed-script"
    )


def _differing(own: Mapping[str, str], job: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {_short(own, name)} here, {_short(job, name)} in the job"
        for name in sorted({*own, *job})
        if own.get(name) != job.get(name)
    ]


def _short(files: Mapping[str, str], name: str) -> str:
    digest = files.get(name)
    return "not there" if digest is None else f"{digest[:SHORT]}…"


def scripts_apart(reports: Iterable[AgentReport]) -> str:
    """Say which agents have which script if they have not all the same; "" if they have."""
    groups = _by_script(reports)
    if len(groups) < 2:
        return ""
    told = "; ".join(
        f"{', '.join(one.agent for one in group)}: {group[0].script[:SHORT] or 'unknown'}…"
        for group in groups
    )
    return f"a changed script holds for all machines or for none: {told}"


def largest_of_one_script(reports: Iterable[AgentReport]) -> list[AgentReport]:
    """Return the agents, in their order, that have the script which most of them have."""
    groups = _by_script(reports)
    return groups[0] if groups else []


def _by_script(reports: Iterable[AgentReport]) -> list[list[AgentReport]]:
    """Return the reports of each script; the most first, else in their order."""
    groups: dict[str, list[AgentReport]] = {}
    for report in reports:
        groups.setdefault(report.script, []).append(report)
    return sorted(groups.values(), key=lambda group: -len(group))
