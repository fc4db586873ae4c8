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
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from castor_policy.store import (
    Compare,
    Delete,
    DeletePrefix,
    Keys,
    KeyValue,
    LeaseLostError,
    Put,
    StoreEvent,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
    Txn,
    TxnResult,
    require_revision,
)
from castor_runtime.store_address import UNIX, StoreAddress
from castor_runtime.stores.etcd_client import (
    EtcdEndpoint,
    StatusCode,
    etcdrpc,
    key_ranges,
    prefix_range,
)
from castor_runtime.stores.refusal import is_of_token, refusal, refusal_of_login, refusal_of_user
from castor_runtime.stores.watch import WatchStream

CALL_TIMEOUT_S = 2.0
"""A call that took so long raises; well under the lease's time, so that another can be tried."""


_SAID_BY_ALL = frozenset(
    (
        *(StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT),
        *(StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.FAILED_PRECONDITION),
    )
)
"""What every member would answer alike: there is no better one to turn to."""


class EtcdStore:
    """A `castor_policy.store.Store` on one or several members of an etcd cluster.

    Calls go to one member until it fails, then to the next. Calls that may be repeated are tried at
    each member within their time; a transaction is not, for a second try could not tell its own
    first from somebody else's.

    Args:
        address: of its members, and how it is entered.
        timeout_s: the longest that a call takes.

    Raises:
        ValueError: no endpoint, or no time.
    """

    def __init__(self, address: StoreAddress, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        if not address.endpoints:
            raise ValueError("name at least one etcd endpoint as host:port")
        if not timeout_s > 0:
            raise ValueError(f"a call needs a positive time: timeout_s = {timeout_s}")
        self._endpoints = [EtcdEndpoint(*where, address.tls) for where in address.endpoints]
        self._address = address
        self._token = ""
        self._logging_in = asyncio.Lock()
        self._timeout_s = timeout_s
        # Goes up with each failure of the member that is current; the calls and watches that were
        # begun in one turn and fail together then count as one failure.
        self._turn = 0
        self._streams: list[WatchStream] = []
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
        return await self.read(Keys.under(prefix))

    async def read(self, keys: Keys) -> tuple[list[KeyValue], int]:
        """See `Store.read`: all parts are read at the revision of the first.

        Not in one transaction: etcds until the end of 2022 (3.5.1 here) end, for everybody, if a
        transaction of reads is cancelled, or comes to its deadline, while it is carried out (etcd
        issues 14110 and 14891).
        """
        first, *rest = (
            etcdrpc.RangeRequest(key=first, range_end=end) for first, end in key_ranges(keys)
        )
        answer = await self._repeat(first)
        revision = int(answer.header.revision)
        for one in rest:
            one.revision = revision
        answers = (answer, *await asyncio.gather(*map(self._repeat, rest)))
        found = {pair.key: pair for one in answers for pair in one.kvs}
        return [_key_value(pair) for _, pair in sorted(found.items())], revision

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[StoreEvent], None]:
        """See `Store.watch`."""
        return self.follow(Keys.under(prefix), from_revision)

    async def follow(
        self, keys: Keys, from_revision: int
    ) -> AsyncGenerator[list[StoreEvent], None]:
        """See `Store.follow`."""
        require_revision(from_revision)
        self._require_open()
        token, turn = await self._logged_in(), self._turn
        stream = self._begin_watch(keys, from_revision, token)
        try:
            # A connection that hangs would else keep us waiting for the events of a watch that
            # was never made.
            await stream.created(self._timeout_s)
            if stream.denied and token:
                # etcd says so of a token that has ended, too: a fresh one settles it.
                self._end_watch(stream)
                self._token = "" if token == self._token else self._token
                token = await self._logged_in()
                stream = self._begin_watch(keys, from_revision, token)
                await stream.created(self._timeout_s)
            while True:
                yield await stream.next()
        except StoreUnavailableError:
            if stream.lost:
                self._avoid(turn)
            raise
        finally:
            self._end_watch(stream)

    def _begin_watch(self, keys: Keys, from_revision: int, token: str) -> WatchStream:
        stream = WatchStream(self._current(), keys, from_revision, token)
        self._streams.append(stream)
        return stream

    def _end_watch(self, stream: WatchStream) -> None:
        stream.cancel()
        if stream in self._streams:
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
        deadline_s = time.monotonic() + timeout_s
        token = await self._logged_in(timeout_s)
        call, member = await self._ask(request, timeout_s, token)
        if token and is_of_token(call.code(), call.details()):
            # Refused before it was carried out: also a transaction may be sent again.
            self._token = "" if token == self._token else self._token
            token = await self._logged_in(deadline_s - time.monotonic())
            call, member = await self._ask(request, deadline_s - time.monotonic(), token)
        code = call.code()
        if code is StatusCode.OK:
            answer = call.result()
            self._cluster = int(answer.header.cluster_id)
            return answer
        message = f"etcd at {member.name}: {code.name}: {call.details()}"
        if code is StatusCode.NOT_FOUND:
            raise LeaseLostError(message)
        if _is_full(call):
            raise StoreFullError(message)
        if why := refusal_of_user(code, call.details(), self._address.user):
            raise StoreRefusedError(f"etcd at {member.name} {why}")
        if code is StatusCode.INVALID_ARGUMENT:
            raise ValueError(message)
        if not self._cluster and (why := await self._why(member)):
            raise StoreRefusedError(f"etcd at {member.name} {why}")
        raise StoreUnavailableError(message)

    async def _ask(self, request: Any, timeout_s: float, token: str) -> tuple[Any, EtcdEndpoint]:
        """Return the call once it has ended, and which member it went to."""
        self._require_open()
        turn, member = self._turn, self._current()
        call = member.begin(request, timeout_s, token)
        await _done(call)
        if call.code() not in _SAID_BY_ALL and not _is_full(call):
            self._avoid(turn)
        return call, member

    async def _logged_in(self, timeout_s: float | None = None) -> str:
        """Return the token that the user's password is exchanged for; "" without a user.

        Raises:
            StoreUnavailableError: no member answered; refused, if it did not take the password.
        """
        address = self._address
        if not address.user:
            return ""
        async with self._logging_in:
            if not self._token:
                request = etcdrpc.AuthenticateRequest(name=address.user, password=address.password)
                call, member = await self._ask(request, timeout_s or self._timeout_s, "")
                if call.code() is not StatusCode.OK:
                    why = refusal_of_login(call.details(), address.user)
                    if not why and not self._cluster:
                        why = await self._why(member)
                    if why:
                        raise StoreRefusedError(f"etcd at {member.name} {why}")
                    raise StoreUnavailableError(
                        f"etcd at {member.name}: {call.code().name}: {call.details()}"
                    )
                self._token = call.result().token
            return self._token

    async def _why(self, member: EtcdEndpoint) -> str:
        """Return why a member that never answered lets us not in, where that can be found out."""
        host, port = member.address
        if host == UNIX:
            return ""
        return await asyncio.to_thread(refusal, host, int(port), self._address.tls)

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


def _is_full(call: Any) -> bool:
    """Whether etcd has no space left: an alarm that every member has."""
    return call.code() is StatusCode.RESOURCE_EXHAUSTED and "space" in (call.details() or "")


def _key_value(pair: Any) -> KeyValue:
    return KeyValue(
        key=pair.key.decode(),
        value=pair.value.decode(),
        create_revision=int(pair.create_revision),
        mod_revision=int(pair.mod_revision),
        lease=int(pair.lease) or None,
    )


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
