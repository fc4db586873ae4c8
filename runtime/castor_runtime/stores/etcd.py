"""`EtcdStore`: the store of `castor_policy.store` on etcd.

The etcd3 client's own calls block, and its watcher turns in a busy loop while etcd is away; so this
module takes the client's connection and protocol classes, and makes the calls itself: each is
a grpc future with a deadline, handed over to asyncio, and each watch a stream of its own that
a thread reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from castor_policy.store import (
    Compare,
    Delete,
    DeletePrefix,
    HistoryLostError,
    KeyValue,
    LeaseLostError,
    Put,
    StoreEvent,
    StoreFullError,
    StoreUnavailableError,
    Txn,
    TxnResult,
    require_prefix,
    require_watch,
)
from castor_runtime.stores.certificates import Certificates
from castor_runtime.stores.etcd_client import (
    EtcdEndpoint,
    RpcError,
    StatusCode,
    etcdrpc,
    prefix_range,
)

CALL_TIMEOUT_S = 2.0
"""A call that took so long raises; well under the lease's time, so that another can be tried."""

MAX_UNREAD_BATCHES = 10_000
"""A watch whose reader is so far behind ends; reading the prefix again is cheaper by then."""


class EtcdStore:
    """A `castor_policy.store.Store` on one or several members of an etcd cluster.

    Calls go to one member until it fails, then to the next. Calls that may be repeated are tried at
    each member within their time; a transaction is not, for a second try could not tell its own
    first from somebody else's.

    Args:
        endpoints: host and client port of members, the first preferred; or "unix" and a path.
        timeout_s: the longest that a call takes.
        certificates: to speak TLS with; None: none.

    Raises:
        ValueError: no endpoint, or no time.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int | str]],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        certificates: Certificates | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("name at least one etcd endpoint as host:port")
        if not timeout_s > 0:
            raise ValueError(f"a call needs a positive time: timeout_s = {timeout_s}")
        self._endpoints = [EtcdEndpoint(host, port, certificates) for host, port in endpoints]
        self._timeout_s = timeout_s
        # Goes up with each failure of the member that is current; the calls and watches that were
        # begun in one turn and fail together then count as one failure.
        self._turn = 0
        self._streams: list[_WatchStream] = []
        self._cluster = 0
        self._closed = False

    async def grant(self, ttl_s: float) -> int:
        """See `Store.grant`; etcd counts leases in whole seconds: `ttl_s` is rounded up."""
        if not ttl_s > 0:
            raise ValueError(f"a lease needs a positive time: ttl_s = {ttl_s}")
        response = await self._repeat(etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl_s)))
        return int(response.ID)

    async def keep_alive(self, lease: int) -> float:
        """See `Store.keep_alive`."""
        response = await self._repeat(etcdrpc.LeaseKeepAliveRequest(ID=lease))
        if response.TTL <= 0:
            raise LeaseLostError(f"lease {lease} has ended")
        return float(response.TTL)

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        with contextlib.suppress(LeaseLostError):
            await self._repeat(etcdrpc.LeaseRevokeRequest(ID=lease))

    async def transact(self, txn: Txn) -> TxnResult:
        """See `Store.transact`."""
        response = await self._once(_txn_request(txn), self._timeout_s)
        return TxnResult(bool(response.succeeded), int(response.header.revision))

    async def get_prefix(self, prefix: str) -> tuple[list[KeyValue], int]:
        """See `Store.get_prefix`."""
        require_prefix(prefix)
        first, end = prefix_range(prefix)
        order = etcdrpc.RangeRequest.ASCEND
        response = await self._repeat(
            etcdrpc.RangeRequest(key=first, range_end=end, sort_order=order)
        )
        found = [
            KeyValue(
                key=pair.key.decode(),
                value=pair.value.decode(),
                create_revision=int(pair.create_revision),
                mod_revision=int(pair.mod_revision),
                lease=int(pair.lease) or None,
            )
            for pair in response.kvs
        ]
        return found, int(response.header.revision)

    async def watch(
        self, prefix: str, from_revision: int
    ) -> AsyncGenerator[list[StoreEvent], None]:
        """See `Store.watch`."""
        require_watch(prefix, from_revision)
        self._require_open()
        turn, stream = self._turn, _WatchStream(self._current(), prefix, from_revision)
        self._streams.append(stream)
        try:
            # A connection that hangs would else keep us waiting for the events of a watch that
            # was never made.
            await stream.created(self._timeout_s)
            while True:
                yield await stream.next()
        except StoreUnavailableError:
            if stream.lost:
                self._avoid(turn)
            raise
        finally:
            stream.cancel()
            self._streams.remove(stream)

    def cluster(self) -> int:
        """See `Store.cluster`."""
        return self._cluster

    async def version(self) -> str:
        """Return the version of the member that is current.

        Raises:
            StoreUnavailableError: it does not answer.
        """
        return str((await self._repeat(etcdrpc.StatusRequest())).version)

    async def state(self) -> dict[str, Any]:
        """Return its "version" and its "alarms", such as "NOSPACE".

        Raises:
            StoreUnavailableError: it does not answer.
        """
        listed = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        alarms = (await self._once(listed, self._timeout_s)).alarms
        names = sorted({etcdrpc.AlarmType.Name(alarm.alarm) for alarm in alarms})
        return {"version": await self.version(), "alarms": names}

    async def disarm(self) -> None:
        """Let etcd take writes again after it had no space; it refuses until it is told to."""
        listed = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        for alarm in (await self._once(listed, self._timeout_s)).alarms:
            await self._once(
                etcdrpc.AlarmRequest(
                    action=etcdrpc.AlarmRequest.DEACTIVATE,
                    memberID=alarm.memberID,
                    alarm=alarm.alarm,
                ),
                self._timeout_s,
            )

    async def close(self) -> None:
        """See `Store.close`; ends watches with StoreUnavailableError."""
        self._closed = True
        for stream in self._streams:
            stream.fail("the store was closed")
        for endpoint in self._endpoints:
            endpoint.close()

    async def _repeat(self, request: Any) -> Any:
        """Try each member once within one call's time; for requests that may be repeated."""
        deadline_s = time.monotonic() + self._timeout_s
        for _ in self._endpoints[1:]:
            try:
                return await self._once(request, deadline_s - time.monotonic())
            except StoreUnavailableError:
                if self._closed or time.monotonic() >= deadline_s:
                    raise
        return await self._once(request, deadline_s - time.monotonic())

    async def _once(self, request: Any, timeout_s: float) -> Any:
        """Ask the current member.

        Raises:
            StoreUnavailableError: it did not answer, or could not; the next one is current now.
            LeaseLostError: the request names a lease that has ended.
            ValueError: etcd can't take such a request, ever.
        """
        self._require_open()
        turn, endpoint = self._turn, self._current()
        call = endpoint.begin(request, timeout_s)
        await _done(call)
        code = call.code()
        if code is StatusCode.OK:
            answer = call.result()
            self._cluster = int(answer.header.cluster_id)
            return answer
        message = f"etcd at {endpoint.name}: {code.name}: {call.details()}"
        if code is StatusCode.NOT_FOUND:
            raise LeaseLostError(message)
        if code is StatusCode.INVALID_ARGUMENT:
            raise ValueError(message)
        if code is StatusCode.RESOURCE_EXHAUSTED and "space" in (call.details() or ""):
            # Every member has that alarm: there is no better one to turn to.
            raise StoreFullError(message)
        self._avoid(turn)
        raise StoreUnavailableError(message)

    def _current(self) -> EtcdEndpoint:
        return self._endpoints[self._turn % len(self._endpoints)]

    def _avoid(self, turn: int) -> None:
        """Take the next member, and end the watches of this one: they may have died unheard."""
        if not self._closed and turn == self._turn:
            name = self._current().name
            self._turn += 1
            for stream in self._streams:
                stream.fail(f"etcd at {name} did not answer")

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store was closed")


async def _done(call: Any) -> None:
    """Wait for grpc's future, which ends by its own deadline; cancel it if the waiter is."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits
            loop.call_soon_threadsafe(done.set)

    call.add_done_callback(wake)
    try:
        await done.wait()
    except asyncio.CancelledError:
        call.cancel()
        raise


class _WatchStream:
    """One watch on one member: a thread reads the stream and hands batches to the event loop."""

    def __init__(self, endpoint: EtcdEndpoint, prefix: str, from_revision: int) -> None:
        self.lost = False
        """Whether the member failed it, rather than we."""
        self._name = endpoint.name
        self._from_revision = from_revision
        self._loop = asyncio.get_running_loop()
        self._batches: asyncio.Queue[list[StoreEvent] | StoreUnavailableError] = asyncio.Queue()
        self._is_created = asyncio.Event()
        self._ended = threading.Event()
        first, end = prefix_range(prefix)
        create = etcdrpc.WatchCreateRequest(key=first, range_end=end, start_revision=from_revision)
        self._call = endpoint.begin_watch(self._requests(create))
        threading.Thread(target=self._read, name=f"etcd-watch {prefix}", daemon=True).start()

    async def created(self, timeout_s: float) -> None:
        """Wait until etcd has made the watch, or it has failed (`next` then says how)."""
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

    def _requests(self, create: Any) -> Iterator[Any]:
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
            error = kind(f"etcd at {self._name} cancelled the watch: {why}")
            self._call_loop(self._fail, error)
        elif response.events:
            self._call_loop(self._put, [_store_event(event) for event in response.events])
        elif response.created and response.header.revision < self._from_revision - 1:
            # It would show nothing until it has come so far again.
            why = f"is at revision {response.header.revision}, before {self._from_revision - 1}"
            self._call_loop(self._fail, HistoryLostError(f"etcd at {self._name} {why}"))
        elif response.created:
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


def _compares(compare: Compare) -> Iterator[Any]:
    equal = {"key": compare.key.encode(), "result": etcdrpc.Compare.EQUAL}
    if (revision := compare.create_revision) is not None:
        yield etcdrpc.Compare(target=etcdrpc.Compare.CREATE, create_revision=revision, **equal)
    if (revision := compare.mod_revision) is not None:
        yield etcdrpc.Compare(target=etcdrpc.Compare.MOD, mod_revision=revision, **equal)


def _txn_request(txn: Txn) -> Any:
    compares = [one for compare in txn.compares for one in _compares(compare)]
    operations = [_operation(operation) for operation in txn.operations]
    return etcdrpc.TxnRequest(compare=compares, success=operations)


def _operation(operation: Put | Delete | DeletePrefix) -> Any:
    match operation:
        case Put(key, value, lease):
            put = etcdrpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease or 0)
            return etcdrpc.RequestOp(request_put=put)
        case Delete(key):
            delete = etcdrpc.DeleteRangeRequest(key=key.encode())
        case DeletePrefix(prefix):
            first, end = prefix_range(prefix)
            delete = etcdrpc.DeleteRangeRequest(key=first, range_end=end)
    return etcdrpc.RequestOp(request_delete_range=delete)
