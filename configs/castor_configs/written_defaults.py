"""The defaults of `castor_policy` as a user writes them, each with its unit."""

from __future__ import annotations

from castor_policy import defaults
from castor_policy.membership import LIMITS

PERSIST_EVERY = f"{defaults.PERSIST_EVERY_S / 3600:g}h"
CHUNK = f"{defaults.CHUNK_BYTES >> 20}MiB"
SHORTEST_SPAN = f"{defaults.SHORTEST_SPAN_S * 1e3:g}ms"
GEMINI_BUFFER = f"{defaults.GEMINI_BUFFER_BYTES // 10**6}MB"
LEASE = f"{LIMITS.lease_s:g}s"
HANG = f"{LIMITS.hang_s * 1e3:g}ms"
STALL = f"{LIMITS.stall_s / 60:g}min"
STARTUP = f"{LIMITS.startup_s / 60:g}min"
