"""How far this host's clock is from that of machine 0's, as the event log has it from time to time.

Merged logs are put in order by it (`castor_records.clocks`). Machine 0's agent is in every plan, so
nobody has to know more of the others than the plan says.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from castor_policy.agents.plan import Phase, Plan
from castor_records.events.storing import ClockMeasured
from castor_runtime.agent.event_log import EventLog
from castor_runtime.transport import PeerClient, PeerClock, PeerError

EVERY_S: Final = 300.0
"""Clocks of computers drift by some 20 ppm: 6 ms in that time."""

SPREAD_S: Final = (2.0, 30.0)
"""So long after a generation has begun: machine 0 has better things to do than to answer all."""

_LOOK_S: Final = 1.0
_AGAIN_S: Final = 10.0
_TIMEOUT_S: Final = 2.0


async def watch_clock(
    agent: str,
    plan: Callable[[], Plan | None],
    client: PeerClient,
    log: EventLog,
    *,
    look_s: float = _LOOK_S,
    spread_s: tuple[float, float] = SPREAD_S,
    clock_ns: Callable[[], int] = time.time_ns,
) -> None:
    """Measure in each generation, and every `EVERY_S`, until cancelled.

    What is measured again in a generation is logged only where it says something else.

    Args:
        agent: this one's name.
        plan: returns the newest plan.
        client: asks peers.
        log: where what was measured goes.
        look_s: how often the plan is looked at.
        spread_s: from when to when after a generation has begun it is measured.
        clock_ns: this host's clock.
    """
    generation, due_s = 0, 0.0
    logged: PeerClock | None = None
    while True:
        await asyncio.sleep(look_s)
        newest, now_s = plan(), time.monotonic()
        if newest is None or newest.phase != Phase.LOAD or not newest.addresses:
            continue
        reference, address = newest.agents[0], newest.addresses[0]
        if newest.generation != generation:
            generation, logged = newest.generation, None
            due_s = now_s + random.uniform(*spread_s)  # noqa: S311 - it spreads load
        if agent == reference or now_s < due_s:
            continue
        try:
            found = await client.clock(address, _TIMEOUT_S, clock_ns)
        except PeerError:
            due_s = now_s + _AGAIN_S  # nothing depends on it
            continue
        due_s = now_s + EVERY_S
        if logged is not None and _agree(found, logged):
            continue
        logged = found
        log.write(
            ClockMeasured(
                agent=agent,
                reference=reference,
                offset_ns=found.offset_ns,
                uncertainty_ns=found.uncertainty_ns,
            )
        )


def _agree(one: PeerClock, other: PeerClock) -> bool:
    """Whether both may be of one clock that has not changed."""
    apart_ns = abs(one.offset_ns - other.offset_ns)
    return apart_ns <= one.uncertainty_ns + other.uncertainty_ns
