"""Whether hosts reach each other's ports, both ways: their doctors meet in the store, and try.

Each leaves a card there, under a lease, that says where it listens. Once as many as were expected
are there, each asks the others at all their ports, writes what it could not reach on its own card,
and stays until the others have, and have read what it wrote. So each host also learns who does not
reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from castor_policy.agents.documents import Document
from castor_policy.agents.store_keys import doctors_prefix
from castor_policy.store import (
    Compare,
    LeaseLostError,
    Put,
    Store,
    StoreUnavailableError,
    Txn,
)
from castor_runtime.doctor.finding import Finding, bad, good, note
from castor_runtime.doctor.link_rate import IterationTraffic, rate_from
from castor_runtime.doctor.open_ports import (
    AGENTS,
    COLLECTIVES,
    KINDS,
    OpenPorts,
    run_of,
    unreached,
)
from castor_runtime.doctor.store import CLOCKS, clock_apart
from castor_runtime.ports import ANY_PORT, Ports, kernel_range
from castor_runtime.transport import (
    Credentials,
    PeerClient,
    PeerError,
    PeerRefusedError,
)

LEASE_S: Final = 10.0
SLOW_LINK: Final = 0.5
"""Of the fastest link that was measured: the slowest one holds up all hosts."""

_RENEW_S: Final = 2.0
_LOOK_S: Final = 0.2
_HOSTS_A_SECOND: Final = 100  # whose cards one doctor reads, so that a thousand do not ask too much
_AT_A_TIME: Final = 32
_AGENT_S: Final = 10.0
_RATE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Card(Document):
    """What a doctor leaves for the others.

    Attributes:
        host: its name.
        places: host:port by kind.
        token: what its plain ports say.
        unreached: once it has asked all others: of each that has any, why which of its ports
            cannot be reached from there, by host and kind; before that None.
        bytes_per_s: of the link from the next host; 0: not measured.
        has_read: it has read what all others wrote, and needs them no longer.
    """

    host: str
    places: Mapping[str, str]
    token: str
    unreached: Mapping[str, Mapping[str, str]] | None = None
    bytes_per_s: float = 0.0
    has_read: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """Who is to meet.

    Attributes:
        job: whose hosts they are.
        host: name of this one.
        hosts: how many, with this one.
        patience_s: so long the others are waited for, to come and to end.
        ports: as given by --ports.
        traffic: what an iteration moves; None: not known.
    """

    job: str
    host: str
    hosts: int
    patience_s: float
    ports: Ports = ANY_PORT
    traffic: IterationTraffic | None = None


async def meet(
    store: Store, expected: Expected, at: str, credentials: Credentials
) -> list[Finding]:
    """Meet the other hosts' doctors and try all ports both ways.

    Args:
        store: of the job, which answers.
        expected: who is to come.
        at: address of this host to listen at.
        credentials: that agents of the job prove to each other.

    Raises:
        StoreUnavailableError: it does not answer any more.
        InputError: no port is free.
        OSError: the address is not this host's.
    """
    async with OpenPorts(at, expected.ports, credentials, expected.job) as listening:
        card = Card(expected.host, dict(listening.places), listening.token)
        meeting = _Meeting(store, expected, card, credentials)
        async with meeting.held() as came:
            if not came:
                advice = "give each host a name of its own: --name"
                return [bad("hosts", f"another doctor is {expected.host!r} already", advice)]
            others = await meeting.others()
            found = await meeting.ask(others)
            others = await meeting.until_all_have_read(others)
        return [
            *meeting.who_came(others),
            *found,
            *meeting.from_others(others),
            *meeting.link(others),
        ]


class _Meeting:
    def __init__(
        self, store: Store, expected: Expected, card: Card, credentials: Credentials
    ) -> None:
        self._store = store
        self._expected = expected
        self._card = card
        self._client = PeerClient(credentials, run_of(expected.job))
        self._key = doctors_prefix(expected.job) + expected.host
        self._lease = 0
        self._no_rate = ""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Leave the card in the store for as long as this lasts; yield whether it could be."""
        self._lease = await self._store.grant(LEASE_S)
        renewing = asyncio.create_task(self._renew())
        try:
            yield await self._claimed()
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            with contextlib.suppress(StoreUnavailableError):
                await self._store.revoke(self._lease)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(StoreUnavailableError, LeaseLostError):  # `_write` says so
                await self._store.keep_alive(self._lease)

    async def _claimed(self) -> bool:
        """Put the card where there is none; one of a doctor that was killed ends with its lease."""
        give_up_s = time.monotonic() + LEASE_S + _RENEW_S
        while True:
            none = Compare(self._key, create_revision=0)
            if await self._write(none):
                return True
            if time.monotonic() > give_up_s:
                return False
            await asyncio.sleep(_LOOK_S)

    async def _write(self, *compares: Compare) -> bool:
        """Put the card, if that holds; return whether it did."""
        put = Put(self._key, self._card.to_json(), self._lease)
        try:
            return (await self._store.transact(Txn(compares, (put,)))).succeeded
        except LeaseLostError as error:
            text = f"this host's card has ended: it stood still for {LEASE_S:g} s"
            raise StoreUnavailableError(text) from error

    async def _cards(self) -> list[Card]:
        """Return the cards of those who came first, as many as are expected, in that order."""
        keys, _ = await self._store.get_prefix(doctors_prefix(self._expected.job))
        came = sorted(keys, key=lambda one: (one.create_revision, one.key))
        cards = []
        for one in came[: self._expected.hosts]:
            with contextlib.suppress(ValueError):  # of another version's doctor
                cards.append(Card.from_json(one.value))
        return cards

    async def others(self) -> list[Card]:
        """Wait for the others; return those who came, the next after this one first."""
        give_up_s = time.monotonic() + self._expected.patience_s
        cards = await self._cards()
        while len(cards) < self._expected.hosts and time.monotonic() < give_up_s:
            await asyncio.sleep(_look_s(len(cards)))
            cards = await self._cards()
        names = [card.host for card in cards]
        if self._card.host not in names:
            return cards  # one host more than was expected: it can still ask the others
        own = names.index(self._card.host)
        return [*cards[own + 1 :], *cards[:own]]

    async def ask(self, others: Sequence[Card]) -> list[Finding]:
        """Ask all of them at all ports, and say so on the card; return what is wrong."""
        places = asyncio.Semaphore(_AT_A_TIME)

        async def one(other: Card) -> tuple[dict[str, str], list[Finding]]:
            async with places:
                return await self._asked(other)

        answers = await asyncio.gather(*(one(other) for other in others))
        faults = {other.host: why for other, (why, _) in zip(others, answers, strict=True) if why}
        rate = 0.0
        if others and AGENTS not in faults.get(others[0].host, {}):
            rate = await self._rate(others[0])
        self._card = replace(self._card, unreached=faults, bytes_per_s=rate)
        await self._write()
        return [finding for _, findings in answers for finding in findings]

    async def _asked(self, other: Card) -> tuple[dict[str, str], list[Finding]]:
        faults = await unreached(other.places, other.token)
        findings = []
        try:
            apart = await self._client.clock(other.places[AGENTS], _AGENT_S)
        except PeerRefusedError as error:
            findings.append(bad(f"to {other.host}", str(error), "give both hosts the same secret"))
            faults[AGENTS] = "one refuses the other: the secrets differ, or the certificates"
        except (PeerError, ValueError) as error:
            faults[AGENTS] = str(error)
        else:
            if wrong := clock_apart(apart.offset_ns / 1e9):
                findings.append(note(f"to {other.host}", wrong, CLOCKS))
        for kind, why in faults.items():
            if not (kind == AGENTS and findings):
                text = f"{other.places[kind]} ({kind}) is not reached from here: {why}"
                findings.append(bad(f"to {other.host}", text, self._advice(kind)))
        return faults, findings

    async def _rate(self, other: Card) -> float:
        """Return at how many bytes a second parts come from there; 0 if none come."""
        try:
            async with asyncio.timeout(_RATE_S):
                return await rate_from(self._client, other.places[AGENTS])
        except (PeerError, TimeoutError) as error:
            self._no_rate = str(error) or f"a few MiB take more than {_RATE_S:g} s"
            return 0.0

    async def until_all_have_read(self, others: Sequence[Card]) -> list[Card]:
        """Wait until the others have asked, and then until they need this host no longer.

        Returns:
            Their cards as they were last seen.
        """
        asked = await self._until(others, lambda one: one.unreached is not None)
        self._card = replace(self._card, has_read=True)
        await self._write()
        return await self._until(asked, lambda one: one.has_read)

    async def _until(self, others: Sequence[Card], holds: Callable[[Card], bool]) -> list[Card]:
        """Wait until that holds of each that has not left; return them as they were last seen."""
        seen = {other.host: other for other in others}
        give_up_s = time.monotonic() + self._expected.patience_s + _RATE_S
        while time.monotonic() < give_up_s:
            there = {card.host: card for card in await self._cards()}
            seen |= {host: there[host] for host in seen.keys() & there.keys()}
            if all(holds(one) or host not in there for host, one in seen.items()):
                break
            await asyncio.sleep(_look_s(len(seen)))
        return [seen[other.host] for other in others]

    def who_came(self, others: Sequence[Card]) -> Iterator[Finding]:
        """Say whether as many came as were expected."""
        hosts = ", ".join(sorted([self._card.host, *(other.host for other in others)]))
        there, wanted = len(others) + 1, self._expected.hosts
        if there < wanted:
            text = f"{there} of {wanted} came within {self._expected.patience_s:g} s: {hosts}"
            advice = "start the same line on the others meanwhile, or give more --patience"
            yield bad("hosts", text, advice)
        elif there > wanted:
            yield note("hosts", f"{wanted} had met before: {hosts}", f"give --meet {there}")

    def from_others(self, others: Sequence[Card]) -> Iterator[Finding]:
        """Say who does not reach this host, who may have not tried, and with whom all is well."""
        for other in others:
            if other.unreached is None:
                text = "left before it had tried to reach this host"
                yield note(f"from {other.host}", text, "start both again")
                continue
            faults = other.unreached.get(self._card.host, {})
            for kind, why in faults.items():
                text = f"does not reach {self._card.places[kind]} of this host ({kind}): {why}"
                yield bad(f"from {other.host}", text, self._advice(kind))
            if not faults and other.host not in (self._card.unreached or {}):
                text = f"reached, {_ports(other)}; it reaches ours, {_ports(self._card)}"
                yield good(f"ports of {other.host}", text)

    def link(self, others: Sequence[Card]) -> Iterator[Finding]:
        """Say how fast the next host's link is, and how long an iteration takes it."""
        if not others or AGENTS in (self._card.unreached or {}).get(others[0].host, {}):
            return
        what, rate = f"link from {others[0].host}", self._card.bytes_per_s
        if not rate:
            yield bad(what, self._no_rate, "see to cable, switch port and MTU")
            return
        text = f"{rate / 1e6:.0f} MB/s, as agents fetch a part"
        if (traffic := self._expected.traffic) is not None:
            text += (
                f"; an iteration moves {traffic.total_bytes / 1e9:.3g} GB in "
                f"({traffic.training_bytes / 1e9:.3g} by training, "
                f"{traffic.copies_bytes / 1e9:.3g} of copies): {traffic.total_bytes / rate:.2g} s"
            )
        fastest = max(one.bytes_per_s for one in (*others, self._card))
        if rate < SLOW_LINK * fastest:
            advice = "all hosts wait for the slowest: see to cable, switch port, MTU, interface"
            yield note(what, f"{text}; another host has {fastest / 1e6:.0f} MB/s", advice)
        else:
            yield good(what, text)

    def _advice(self, kind: str) -> str:
        if kind == COLLECTIVES:
            return (
                f"open the kernel's range, {kernel_range()}, among the job's hosts, or make it "
                "smaller: net.ipv4.ip_local_port_range"
            )
        if self._expected.ports == ANY_PORT:
            return "give --ports 7000-7019, and open those among the job's hosts"
        return f"open {self._expected.ports} among the job's hosts"


def _ports(card: Card) -> str:
    return ", ".join(card.places[kind].rpartition(":")[2] for kind in KINDS)


def _look_s(hosts: int) -> float:
    return max(_LOOK_S, hosts / _HOSTS_A_SECOND)
