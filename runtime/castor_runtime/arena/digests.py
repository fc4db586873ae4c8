"""Digests of chunks: xxh3_64, at memory speed.

`xxhash` gives up Python's lock while it reads a large buffer, so threads add up: two digest 24 GB/s
each where one alone does.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from castor_runtime.arena.layout import PartLayout


def chunk_digest(chunk: bytes | bytearray | memoryview) -> int:
    """Return the digest of one chunk, as it stands in the table of a part."""
    return xxhash.xxh3_64_intdigest(chunk)


def chunk_digests(data: memoryview, part: PartLayout, workers: int = 1) -> tuple[int, ...]:
    """Return the digest of each chunk of `data`, computed by `workers` threads.

    Raises:
        ValueError: `workers` is less than 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")

    def digest(chunk: int) -> int:
        start, end = part.chunk_span(chunk)
        with data[start:end] as view:
            return chunk_digest(view)

    if workers == 1 or part.chunks == 1:
        return tuple(map(digest, range(part.chunks)))
    with ThreadPoolExecutor(workers, thread_name_prefix="castor-digest") as pool:
        return tuple(pool.map(digest, range(part.chunks)))


def differing(found: Sequence[int], expected: Sequence[int]) -> list[int]:
    """Return the chunks whose digests differ, ascending."""
    return [chunk for chunk, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
