"""Injects the faults of a run at their moments, and those that `castor kill` asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from castor_configs.errors import InputError
from castor_lab.emulated_cluster.network import Network
from castor_lab.faults.fault import FOR_GOOD, Fault, FaultKind, parse_fault
from castor_lab.faults.machines import SIGNALS, Struck, TargetMissingError, strike
from castor_lab.faults.schedule import FaultSchedule
from castor_lab.faults.surroundings import Surroundings
from castor_records.events.event import Event
from castor_records.events.failures import Failed
from castor_records.events.training import IterationEnded
from castor_runtime.launcher.observer import LiveRun, Observer
from castor_runtime.launcher.result_file import Outcome
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.local_tier import LocalTier

TARGET_WAIT_S: Final = 60.0
"""For a fault whose target is not there, such as a trainer that is being restarted."""

_AGAIN_S = 0.01
_LOOK_EVERY_S = 0.01
"""While faults are to come: one "at iteration 10" comes that late at most."""


class Injector(Observer):
    """The faults of one run.

    Args:
        faults: what was asked for at the start.
        network: the emulated cluster that the run is on, if it is on one.
    """

    def __init__(self, faults: Iterable[Fault] = (), network: Network | None = None) -> None:
        self._schedule = FaultSchedule(faults)
        self._network = network
        self._iteration = 0
        # A fault is a value; two equal ones may be under way, so they are told apart by identity.
        self._answers: dict[int, asyncio.Future[list[Struck]]] = {}
        self._under_way: dict[int, Fault] = {}
        self._missed: list[Fault] = []
        # Made in `begin`.
        self._run: LiveRun
        self._around: Surroundings

    def begin(self, run: LiveRun) -> None:
        """Take the run whose faults they are."""
        self._run = run
        tiers = map(tier_at, run.spec.persistence.tiers)
        self._around = Surroundings(
            run.folder.strangers,
            next((tier.folder for tier in tiers if isinstance(tier, LocalTier)), None),
            run.etcd,
            run.options_for,
            run.intrude,
        )

    @property
    def not_injected(self) -> tuple[str, ...]:
        """What has not been injected so far."""
        faults = [*self._missed, *self._under_way.values(), *self._schedule.waiting]
        return tuple(map(str, faults))

    def saw(self, event: Event, now_s: float) -> None:
        """Take in what happened in the run."""
        self._schedule.saw(event, now_s)
        if isinstance(event, IterationEnded):
            self._iteration = event.iteration

    @property
    def look_every_s(self) -> float:
        """See `Observer.look_every_s`."""
        return _LOOK_EVERY_S if self._schedule.waiting else super().look_every_s

    def poll(self, now_s: float) -> None:
        """Begin what is due."""
        for fault in self._schedule.due(now_s):
            self._run.spawn(self.inject(fault))

    def outcome(self, outcome: Outcome) -> Outcome:
        """Add what was not injected, and how strangers ended."""
        return replace(
            outcome, not_injected=self.not_injected, strangers=dict(self._around.strangers)
        )

    def close(self) -> None:
        """Mend the persistent storage, if anything is wrong with it."""
        self._around.close()

    async def inject(self, fault: Fault) -> None:
        """Carry a fault out as soon as its targets are there; store and link come back later."""
        self._under_way[id(fault)] = fault
        answer = self._answers.get(id(fault))
        try:
            agents = self._agents()
            around = self._around.strike(fault) if fault.is_around else None
            struck = await (self._strike(fault) if around is None else around)
        except TargetMissingError as error:
            self._missed.append(fault)
            self._run.say(f"{fault} was not injected: {error}")
            if answer is not None and not answer.done():
                answer.set_exception(error)
            return
        finally:
            del self._under_way[id(fault)]
        for one in struck:
            self._run.report(
                Failed(
                    machine=one.machine,
                    failure=one.kind,
                    target=one.target,
                    agent=one.agent,
                    rank=one.rank,
                    iteration=self._iteration,
                    cause=fault.cause,
                    outage_s=_lasting_s(fault),
                ),
                one.time_ns,
            )
        if answer is not None and not answer.done():
            answer.set_result(struck)
        if fault.is_around and (said := await self._around.mend(fault, agents)):
            self._run.say(said)
        if self._network is not None and fault.kind == FaultKind.LINK:
            await self._restore_links(self._network, fault, [one.agent for one in struck])

    async def _restore_links(self, network: Network, fault: Fault, agents: list[str]) -> None:
        if fault.outage_s == FOR_GOOD:
            return
        await asyncio.sleep(fault.outage_s)
        for agent in agents:
            await asyncio.to_thread(network.restore, agent)
            self._run.say(f"the link of agent {agent} is restored")

    async def asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `castor kill` once its fault was carried out.

        Raises:
            ValueError: it asks for what cannot be.
        """
        if request.get("op") != "inject":
            return await super().asked(request)
        number = str(request.get("signal", ""))
        if number not in ("", *SIGNALS):
            raise ValueError(f"unknown signal {number!r}; use {', '.join(SIGNALS)}")
        try:
            fault = parse_fault(
                str(request.get("fault", "")),
                machines=self._run.spec.machines,
                ranks_per_machine=self._run.spec.ranks_per_machine,
            )
        except InputError as error:
            raise ValueError(error.message) from error
        if fault.of_link and self._network is None:
            raise ValueError("this run is not on an emulated cluster: it has no links to cut")
        fault = replace(fault, signal=number, cause="castor kill")
        answer: asyncio.Future[list[Struck]] = asyncio.get_running_loop().create_future()
        self._answers[id(fault)] = answer
        self._schedule.add(fault)
        try:
            struck = await answer
        except TargetMissingError as error:
            return {"ok": False, "reason": str(error)}
        finally:
            del self._answers[id(fault)]
        return {"ok": True, "struck": [one.target for one in struck]}

    async def _strike(self, fault: Fault) -> list[Struck]:
        deadline_s = time.monotonic() + TARGET_WAIT_S
        while True:
            try:
                # In a thread: it waits until a machine's processes are dead.
                return await asyncio.to_thread(
                    strike,
                    self._run.folder,
                    fault,
                    ranks_per_machine=self._run.spec.ranks_per_machine,
                    root=self._run.root(),
                    doomed=self._run.doom,
                    network=self._network,
                )
            except TargetMissingError:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(_AGAIN_S)

    def _agents(self) -> dict[int, str]:
        """Return the name of the agent that fills each machine, the newest to say so."""
        records = sorted(self._run.folder.records(), key=lambda record: record.generation)
        return {one.machine: one.name for one in records if one.lives and one.machine is not None}


def _lasting_s(fault: Fault) -> float | None:
    """Return how long a link stays cut, if that has an end."""
    ends = fault.kind == FaultKind.LINK and fault.outage_s != FOR_GOOD
    return fault.outage_s if ends else None
