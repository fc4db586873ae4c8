"""One stream of etcd's watches: a thread reads the stream and hands batches to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from castor_policy.store import HistoryLostError, Keys, StoreEvent, StoreUnavailableError
from castor_runtime.stores.etcd_client import EtcdEndpoint, RpcError, etcdrpc, key_ranges

MAX_UNREAD_BATCHES = 10_000
"""A watch whose reader is so far behind ends; reading the prefix again is cheaper by then."""


class WatchStream:
    """Watches of one member: a thread reads the stream and hands batches to the event loop.

    Each part of `keys` is a watch of its own, and all of them one stream: it fails as a whole.
    """

    def __init__(
        self, endpoint: EtcdEndpoint, keys: Keys, from_revision: int, token: str = ""
    ) -> None:
        self.lost = False
        """Whether the member failed it, rather than we."""
        self.denied = False
        """Whether the member says that we may not watch this."""
        self._name = endpoint.name
        self._from_revision = from_revision
        self._loop = asyncio.get_running_loop()
        self._batches: asyncio.Queue[list[StoreEvent] | StoreUnavailableError] = asyncio.Queue()
        self._is_created = asyncio.Event()
        self._ended = threading.Event()
        creates = [
            etcdrpc.WatchCreateRequest(key=first, range_end=end, start_revision=from_revision)
            for first, end in key_ranges(keys)
        ]
        self._to_create = len(creates)
        self._call = endpoint.begin_watch(self._requests(creates), token)
        threading.Thread(target=self._read, name="etcd-watch", daemon=True).start()

    async def created(self, timeout_s: float) -> None:
        """Wait until etcd has made the watches, or it has failed (`next` then says how)."""
        try:
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together
            # with what it waits for, and who cancelled this watch would wait for its end for ever.
            async with asyncio.timeout(timeout_s):
                await self._is_created.wait()
        except TimeoutError:
            self.lost = True
            raise StoreUnavailableError(f"etcd at {self._name} made no watch in time") from None

    async def next(self) -> list[StoreEvent]:
        """Wait for the next batch; raise StoreUnavailableError once the stream has failed."""
        batch = await self._batches.get()
        if isinstance(batch, StoreUnavailableError):
            raise batch
        return batch

    def cancel(self) -> None:
        """End the stream and its threads."""
        self._ended.set()
        self._call.cancel()

    def fail(self, reason: str) -> None:
        """Let `next` raise StoreUnavailableError, after the batches that came before."""
        self._fail(StoreUnavailableError(reason))

    def _fail(self, error: StoreUnavailableError) -> None:
        self._put(error)
        self.cancel()

    def _requests(self, creates: Sequence[Any]) -> Iterator[Any]:
        for create in creates:
            yield etcdrpc.WatchRequest(create_request=create)
        self._ended.wait()  # the request stream's end may end the watch

    def _read(self) -> None:
        try:
            for response in self._call:
                self._hand_over(response)
            reason = "ended the watch"
        except RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        if not self._ended.is_set():
            self.lost = True
            self._ended.set()
            self._call_loop(self._put, StoreUnavailableError(f"etcd at {self._name}: {reason}"))

    def _hand_over(self, response: Any) -> None:
        if response.canceled:
            compacted = int(response.compact_revision)
            why = f"compacted up to revision {compacted}" if compacted else response.cancel_reason
            kind = HistoryLostError if compacted else StoreUnavailableError
            self.denied = "permission denied" in why
            error = kind(f"etcd at {self._name} cancelled the watch: {why}")
            self._call_loop(self._fail, error)
        elif response.events:
            self._call_loop(self._put, [_store_event(event) for event in response.events])
        elif response.created and response.header.revision < self._from_revision - 1:
            # It would show nothing until it has come so far again.
            why = f"is at revision {response.header.revision}, before {self._from_revision - 1}"
            self._call_loop(self._fail, HistoryLostError(f"etcd at {self._name} {why}"))
        elif response.created:
            self._to_create -= 1
            if not self._to_create:
                self._call_loop(self._is_created.set)

    def _put(self, batch: list[StoreEvent] | StoreUnavailableError) -> None:
        self._is_created.set()
        if self._batches.qsize() < MAX_UNREAD_BATCHES:
            self._batches.put_nowait(batch)
        elif not self._ended.is_set():
            while not self._batches.empty():
                self._batches.get_nowait()
            self.fail(f"{MAX_UNREAD_BATCHES} batches of events were left unread")

    def _call_loop(self, function: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody reads
            self._loop.call_soon_threadsafe(function, *arguments)


def _store_event(event: Any) -> StoreEvent:
    pair = event.kv
    if event.type == event.DELETE:
        return StoreEvent(pair.key.decode(), None, 0, int(pair.mod_revision))
    created, modified = int(pair.create_revision), int(pair.mod_revision)
    return StoreEvent(pair.key.decode(), pair.value.decode(), created, modified)
