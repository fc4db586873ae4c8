"""What a run came to: the final state over all ranks, from what each agent says of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def final_state(finals: Iterable[Mapping[str, Any]], ranks: int) -> tuple[int | None, str | None]:
    """Combine what the agents say of the final state: iteration and SHA-256 over all ranks.

    The hash is that of the ranks' hexadecimal digests, one after the other in rank order.

    Args:
        finals: each agent's {"iteration": i, "ranks": {rank: digest}}, or {rank: digest} with
            "iteration" beside the ranks.
        ranks: how many ranks there are.

    Returns:
        (None, None) while a rank is missing.

    Raises:
        ValueError: two agents disagree on the iteration or on a rank.
    """
    digests: dict[int, str] = {}
    iterations: set[int] = set()
    for final in finals:
        if final.get("iteration") is not None:
            iterations.add(int(final["iteration"]))
        own = final.get("ranks", {key: d for key, d in final.items() if str(key).isdigit()})
        for rank, digest in own.items():
            if digests.setdefault(int(rank), digest) != digest:
                raise ValueError(f"two agents disagree on the final state of rank {rank}")
    if len(iterations) > 1:
        raise ValueError(f"the ranks ended at different iterations: {sorted(iterations)}")
    if sorted(digests) != list(range(ranks)):
        return None, None
    joined = "".join(digests[rank] for rank in range(ranks))
    return next(iter(iterations), None), hashlib.sha256(joined.encode("ascii")).hexdigest()
