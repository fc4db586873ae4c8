"""Whether a job's persistent tiers can be used at all, before anything is started."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Final

from castor_policy.option import OptionError
from castor_runtime.persistent.address import require_usable, tier_at
from castor_runtime.persistent.tier import TierError

_OPTION: Final = "persistence.tiers"
_LOOK_S: Final = 15.0


def check_tiers(urls: Sequence[str]) -> None:
    """Check that each can be reached from here and lets us in, to read and to write.

    Nothing is left behind there. One that is only away at present is told of and no fault: a
    checkpoint is tried there when one is due.

    Raises:
        OptionError: one can never be used as it is.
    """
    try:
        for url in urls:
            require_usable(url)
    except ValueError as error:
        raise OptionError(_OPTION, str(error)) from error
    for url in urls:
        _look_at(url)


def _look_at(url: str) -> None:
    found: list[OSError] = []

    def look() -> None:
        try:
            tier = tier_at(url)
            tier.files("")
            tier.probe()
        except OSError as error:
            found.append(error)

    looking = threading.Thread(target=look, name="castor-storage-look", daemon=True)
    looking.start()
    looking.join(_LOOK_S)
    for error in found:
        if isinstance(error, TierError) and error.for_good:
            raise OptionError(_OPTION, str(error)) from error
    if found or looking.is_alive():
        told = str(found[0]) if found else f"{tier_at(url).url} has not answered for {_LOOK_S:g} s"
        sys.stderr.write(f"castor: {told}; training starts without it, and tries it again\n")
