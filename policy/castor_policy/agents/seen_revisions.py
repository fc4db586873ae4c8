"""Up to which revision an agent has seen each key: what is new, what is old, and what cannot be.

A watch shows the changes of each part of its keys in order, and a read the whole truth of the keys
that it asks for, as of its revision. So what is not newer than either says nothing of a key, and a
store that shows such a change for the first time is not the one that it was.
"""

from __future__ import annotations

from castor_policy.store import Keys, StoreEvent


class SeenRevisions:
    """Revisions of one job's keys, in one store, as one life of one agent has seen them.

    Args:
        agents_keys: what every agent follows.
        roots_keys: all of the job.

    Attributes:
        watched: the keys that are watched now.
        newest: the newest revision seen; 0: none was.
        born: of this life's first read of the store; None before it.
    """

    def __init__(self, agents_keys: Keys, roots_keys: Keys) -> None:
        self._agents_keys, self._roots_keys = agents_keys, roots_keys
        self.restart()

    def restart(self) -> None:
        """Forget it all: the store is another one."""
        self.watched = self._agents_keys
        self.newest = 0
        self.born: int | None = None
        self._changed: dict[str, int] = {}
        self._shown: dict[str, int] = {}  # by part of what is watched
        self._read = self._all_read = 0

    # ---- what is followed ----------------------------------------------------------------------

    @property
    def sees_all(self) -> bool:
        """Whether all of the job is watched."""
        return self.watched == self._roots_keys

    def is_followed(self, key: str) -> bool:
        """Whether every agent follows the key."""
        return self._agents_keys.part_of(key) is not None

    def watch(self, keys: Keys) -> None:
        """Take in that these keys are watched from now on."""
        self.watched = keys
        self._shown.clear()

    def forget_others(self) -> list[str]:
        """Forget the keys that not every agent follows; return which ones were known."""
        others = [key for key in self._changed if not self.is_followed(key)]
        for key in others:
            del self._changed[key]
        self._all_read = 0
        return others

    # ---- what is seen --------------------------------------------------------------------------

    def shown(self, event: StoreEvent) -> None:
        """Take in that a watch has come this far."""
        part = self.watched.part_of(event.key) or ""
        self._shown[part] = max(self._shown.get(part, 0), event.mod_revision)

    def read(self, keys: Keys, revision: int) -> None:
        """Take in that these keys have been read as of a revision."""
        self._read = max(self._read, revision)
        if keys == self._roots_keys:
            self._all_read = max(self._all_read, revision)
        self.newest = max(self.newest, revision)

    def is_news(self, key: str, revision: int) -> bool:
        """Whether this change of a key is newer than all that was seen of it; it is seen then."""
        if revision <= max(self._read_of(key), self._changed.get(key, 0)):
            return False
        self._changed[key] = revision
        self.newest = max(self.newest, revision)
        return True

    def of(self, key: str) -> int:
        """Return up to which revision all changes of a key have been seen, or read over."""
        return max(self._read_of(key), self._shown.get(self.watched.part_of(key) or "", 0))

    def _read_of(self, key: str) -> int:
        """Return the revision of the last read that showed this key, or that there was none."""
        return self._read if self.is_followed(key) else self._all_read
