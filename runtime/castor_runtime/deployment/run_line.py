"""The line of `castor run` that a host is to be given, as words; it is read on that host."""

from __future__ import annotations

from collections.abc import Sequence

from castor_configs.errors import InputError
from castor_runtime.launcher.train_options import check_job_name


def value_of(words: Sequence[str], option: str) -> str:
    """Return what an option of Castor's own is given; "" if the line has it not.

    Args:
        words: of the line, after `castor run`.
        option: such as --job.

    Raises:
        InputError: it stands there without a value.
    """
    for number, word in enumerate(words):
        if word == "--":
            break
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            if number + 1 == len(words):
                raise InputError("needs a value", key=option)
            return words[number + 1]
    return ""


def job_of(words: Sequence[str]) -> str:
    """Return the job's name.

    Raises:
        InputError: the line has none, or it is no name.
    """
    job = value_of(words, "--job")
    if not job:
        raise InputError("name the job, by the same name on every host", key="--job")
    check_job_name(job)
    return job


def completed(words: Sequence[str], hosts: int, slots: int | None) -> list[str]:
    """Return the line with what a list of hosts says, where the line does not say it.

    Args:
        words: of the line, after `castor run`.
        hosts: how many there are.
        slots: trainers on each; None: not said.

    Raises:
        InputError: an option has no value.
    """
    first: list[str] = []
    if not value_of(words, "--nnodes"):
        first += ["--nnodes", str(hosts)]
    if slots is not None and not value_of(words, "--nproc-per-node"):
        first += ["--nproc-per-node", str(slots)]
    return [*first, *words]


def without(words: Sequence[str], option: str) -> list[str]:
    """Return the line without an option of Castor's own and its value.

    Args:
        words: of the line, after `castor run`.
        option: such as --secret.
    """
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            kept.append(word)
            break
        if word == option:
            next(left, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return [*kept, *left]


def draining(words: Sequence[str], before_s: int) -> list[str]:
    """Return the line with which an agent that is told to end gives its place away first.

    Args:
        words: of the line, after `castor run`; what it says itself stands.
        before_s: so long after having been told it is ended in any case.

    Raises:
        InputError: an option has no value.
    """
    if value_of(words, "--on-term"):
        return list(words)
    return ["--on-term", "drain", "--term-patience", f"{max(1, before_s // 2)}s", *words]
