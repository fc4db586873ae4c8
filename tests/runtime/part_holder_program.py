"""Serves parts as an agent does, some of them wrong, until its input ends.

    python part_holder_program.py FOLDER SIZE CHUNK '{"RANK": {"is": KIND, "pause_s": S}}'

KIND: "good"; "damaged" in each chunk; "other", a whole checkpoint with other content; "foreign", of
another fingerprint; both of "other damaged". `pause_s`: before each chunk; `answer_s`: before the
part is opened. Prints its address.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from castor_runtime.arena import PartLayout, Replica
from castor_runtime.arena.layout import SegmentOwner
from castor_runtime.transport import JobSecret, PartMissingError, PeerServer

FINGERPRINT = bytes(range(16))
RUN = "0123456789abcdef"
SECRET = JobSecret(b"the secret of a test job, 32 bytes"[:32])
ITERATION = 7


def content(rank: int, size: int, seed: int = 0) -> bytes:
    """Return what a part holds."""
    pattern = bytes((rank * 31 + i * 7 + (i >> 8) + seed) & 0xFF for i in range(1 << 12))
    return (pattern * (size // len(pattern) + 1))[:size]


class Paused(list[int]):
    """Digests that are looked up slowly, one for each chunk that is sent."""

    pause_s = 0.0

    def __getitem__(self, index: Any) -> Any:
        time.sleep(self.pause_s)
        return super().__getitem__(index)


class Source:
    """What this process holds."""

    def __init__(self, folder: Path, size: int, chunk: int, parts: dict[str, Any]) -> None:
        self._parts = parts
        self._replicas: dict[int, Replica] = {}
        self.kept = ExitStack()
        for name, part in parts.items():
            rank, kinds = int(name), part["is"].split()
            fingerprint = bytes(16) if "foreign" in kinds else FINGERPRINT
            owner = SegmentOwner("job", RUN, "holder", fingerprint)
            layout = PartLayout(rank, size, 4096, chunk)
            made = self.kept.enter_context(
                Replica.create(f"part-{rank}", owner, layout, folder=folder)
            )
            writing = made.begin(ITERATION, 1, None)
            writing.data[:] = content(rank, size, seed="other" in kinds)
            writing.commit(b"meta")
            if "damaged" in kinds:
                for start in range(0, size, chunk):
                    writing.data[start] ^= 1
            self._replicas[rank] = made

    def open(self, rank: int, iteration: int) -> Any:
        if rank not in self._replicas:
            raise PartMissingError(f"no part of rank {rank}")
        part = self._parts[str(rank)]
        time.sleep(part.get("answer_s", 0.0))
        snapshot = self._replicas[rank].snapshot(iteration)
        digests = Paused(snapshot.digests)
        digests.pause_s = part.get("pause_s", 0.0)
        return replace(snapshot, digests=digests)  # type: ignore[arg-type]


async def main(folder: str, size: str, chunk: str, parts: str) -> None:
    source = Source(Path(folder), int(size), int(chunk), json.loads(parts))
    async with PeerServer(
        "127.0.0.1", run=RUN, credentials=SECRET, source=source, status=dict
    ) as server:
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    source.kept.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
