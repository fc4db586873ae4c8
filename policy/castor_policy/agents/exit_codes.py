"""What an agent's exit code says, and so `castor run`'s and `castor agent`'s: docs/runtime.md.

Whatever starts agents (systemd, Slurm, a script) decides by it whether to start one again.
"""

from __future__ import annotations

FINISHED = 0
"""The job has finished."""

GIVEN_UP = 1
"""The job was given up; what is complete in memory is kept, for `castor resume`."""

REFUSED = 2
"""Its line is wrong, or its name is another's. Nothing restarts it, and it frees no memory."""

BEGIN_AGAIN = 3
"""Another life of this agent must replace it (its fork server died); memory is kept for that."""

STORE_AWAY = 75
"""The store did not answer when it was started: again, in a while (EX_TEMPFAIL of sysexits.h)."""

TERMINATED = 143
"""SIGTERM ended it, as by a shell's convention; its memory waits for its next life."""

DO_NOT_REQUEUE = 93
"""Its user wants it so: the job was stopped, or this machine was drained."""

SETTLED = (FINISHED, GIVEN_UP, REFUSED, DO_NOT_REQUEUE)
"""Nothing is gained by starting an agent again that has ended with one of these."""
