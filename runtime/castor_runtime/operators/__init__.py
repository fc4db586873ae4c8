"""Who brings machines when the root asks for one: this computer, a command, a stranger's cloud.

An operator is chosen by a URL, `NAME:REST` (`castor train --operator`, `castor operate`). The agent
on the machine then joins as a standby, and the root gives it a place: an operator never decides who
fills which. A pool of standbys needs no operator at all.
"""

from __future__ import annotations

from castor_configs.errors import InputError
from castor_configs.plugins import Registry
from castor_runtime.operators.command import CommandOperator
from castor_runtime.operators.ec2 import Ec2Operator
from castor_runtime.operators.local import LocalOperator
from castor_runtime.operators.protocol import JobToJoin, Operator, OperatorMaker

LOCAL = "local:"
"""The operator of agents that the launcher starts itself."""

OPERATORS: Registry[OperatorMaker] = Registry(
    "operators",
    {"local": LocalOperator, "command": CommandOperator, "ec2": Ec2Operator},
    callable,
    "class such as castor_runtime.operators.protocol.Operator",
)
"""By the part of their URLs before the colon."""


def check_operator(url: str) -> None:
    """Refuse what is no operator's URL.

    Raises:
        InputError: nothing has that name, or it is a plugin's that cannot be used.
    """
    name, colon, _ = url.partition(":")
    if not colon:
        known = ", ".join(f"{one}:..." for one in OPERATORS)
        raise InputError(f"expected {known}, not {url!r}", key="--operator")
    OPERATORS.choose(name, "--operator")


def open_operator(url: str, job: JobToJoin) -> Operator:
    """Return the operator that a URL names.

    Raises:
        InputError: there is none of that name, or it refuses the rest of the URL.
    """
    check_operator(url)
    name, _, rest = url.partition(":")
    return OPERATORS[name](rest, job)
