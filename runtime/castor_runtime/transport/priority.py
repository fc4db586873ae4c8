"""Who has the processor first where there are fewer cores than work.

While a lost part is fetched, trainers start beside it: they take the cores, and wait for the part
in the end. Its threads get through more of a second if they go before them; with cores to spare
nothing changes.
"""

from __future__ import annotations

import contextlib
import os
import threading

NICENESS_LESS = 10


def go_first() -> None:
    """Give this thread more of the processor than others, where the system lets it; once for all.

    It does root, and whoever has CAP_SYS_NICE or a limit on niceness (`ulimit -e`).
    """
    # Linux gives each thread a niceness of its own; the process's is its first thread's.
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) - NICENESS_LESS
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
