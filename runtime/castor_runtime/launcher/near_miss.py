"""What a person most likely meant by an option that a training script does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable

from castor_configs.nearest import nearest_name

_UNKNOWN = (
    re.compile(r"error: unrecognized arguments: (.*)"),  # argparse
    re.compile(r"[Nn]o such option:? (.*)"),  # click and typer
    re.compile(r"[Uu]nknown command line flag '?([\w-]+)"),  # absl
)
_OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")


def near_misses(said: str, castor_options: Iterable[str]) -> list[str]:
    """Return a sentence for each option that a script refused and that is near one there is.

    `castor train` hands every option on that it does not know: one of its own that is written wrong
    reaches the script, which then complains of it.

    Args:
        said: the script's last words, with its usage text if it printed one.
        castor_options: those of `castor train`.
    """
    usage = said[max(said.lower().rfind("usage:"), 0) :]
    unknown: dict[str, None] = {}
    for pattern in _UNKNOWN:
        for found in pattern.findall(usage):
            words = found if found.startswith("-") else f"--{found}"
            unknown.update(dict.fromkeys(_OPTION.findall(words)))
    own = set(_OPTION.findall(usage)) - set(unknown)
    castors = {option for option in castor_options if option.startswith("--")}
    hints = []
    for option in unknown:
        near = nearest_name(option, own | castors)
        if near is not None:
            whose = " and ".join(
                name
                for name, options in (("castor train", castors), ("the script", own))
                if near in options
            )
            hints.append(f"the script has no option {option}: did you mean {near} of {whose}?")
    return hints
