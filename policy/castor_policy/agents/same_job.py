"""Whether two hosts that were given a job mean the same one: the first makes it, others join it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from castor_policy.agents.job_spec import JobSpec

_OF_ONE_RUN = frozenset(("run", "started_ns", "credentials", "resumes", "protocol"))
"""What whoever makes a job adds to what a person says of it."""


def differences(here: JobSpec, there: JobSpec) -> list[str]:
    """Return in what a job as it was given here is not the one that was made; empty: it is.

    Args:
        here: as it was given on this host.
        there: as it stands in the store.
    """
    return list(_differing("", here, there))


def _differing(prefix: str, here: object, there: object) -> Iterator[str]:
    assert is_dataclass(here)
    for item in fields(here):
        if not prefix and item.name in _OF_ONE_RUN:
            continue
        ours, made = getattr(here, item.name), getattr(there, item.name)
        if is_dataclass(ours):
            yield from _differing(f"{item.name}.", ours, made)
        elif ours != made:
            yield f"{prefix}{item.name} is {ours!r} here and {made!r} in the job"
