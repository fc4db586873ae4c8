"""What holds where nobody says otherwise: each figure once, for both twins and for every command.

How long which silence is too long has its home beside what it decides: `membership.LIMITS`. Where
the runtime does otherwise than the system that the figures of the paper were made with, there are
two figures with two names: what the runtime does, and what Gemini did.
"""

from __future__ import annotations

from typing import Final

CHECKPOINT_EVERY: Final = 1
"""Iterations from one checkpoint in memory to the next."""

PERSIST_EVERY_S: Final = 3 * 3600.0
"""Between two persistent checkpoints; as BLOOM's training had it (Gemini, sec. 7.1)."""

CHUNK_BYTES: Final = 16 << 20
"""Of a checkpoint: the unit of checksums and of transfer."""

SUB_BUFFERS: Final = 4
"""p: sub-buffers that R, the memory for received chunks, is divided in (Gemini, sec. 5.2)."""

MU: Final = 0.9
"""Share of an idle span that the runtime's traffic uses; the rest absorbs its variance."""

GEMINI_MU: Final = 0.8
"""The same in Gemini's artifact, since the paper gives none: what iterations are simulated with."""

GEMINI_BUFFER_BYTES: Final = 128 * 10**6
"""R of each GPU in the paper (sec. 5.2); the runtime takes `SUB_BUFFERS` chunks."""

SHORTEST_SPAN_S: Final = 0.005
"""Idle spans below it are left alone by the runtime; the paper's are all longer."""

PROFILED_ITERATIONS: Final = 5
"""Iterations whose idle spans the runtime averages before it makes a schedule."""

GEMINI_PROFILED_ITERATIONS: Final = 20
"""The same in the paper (sec. 5.4)."""

NETWORK_EFFICIENCY: Final = 0.6
"""Share of the network's bandwidth that checkpoint traffic reaches, on a cluster nobody measured.

It is what the paper's figures imply for its p4d machines, 60 %. The cluster simulator reckons with
it on every cluster unless the experiment says otherwise (`training.network_efficiency`): its
published results do not hang on a calibration. `castor iterate` reckons with what was fitted to
the checkpoint times of that very cluster, where there is such a figure (its
`calibration.checkpoint_efficiency`: 0.602 on p4d, 0.542 on p3dn, docs/iteration.md), and with this
one elsewhere.
"""
