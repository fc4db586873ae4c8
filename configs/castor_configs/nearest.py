"""The name that a person most likely meant."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable


def nearest_name(written: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` nearest to `written`, or None if none is near.

    Letter case is ignored at first, then decides between equals, as does a common first letter.
    """
    by_folded: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        by_folded.setdefault(name.lower(), []).append(name)
    near = difflib.get_close_matches(written.lower(), sorted(by_folded), n=5, cutoff=0.6)
    candidates = [name for folded in near for name in by_folded[folded]]
    return max(candidates, key=lambda name: _likeness(written, name), default=None)


def _likeness(written: str, name: str) -> tuple[float, int, int, float]:
    folded = difflib.SequenceMatcher(None, written.lower(), name.lower()).ratio()
    exact = difflib.SequenceMatcher(None, written, name).ratio()
    shared_letters = (Counter(written) & Counter(name)).total()
    return round(folded, 6), int(written[:1] == name[:1]), shared_letters, exact
