"""The job's store as this host reaches it, and the job in it."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from castor_configs.errors import InputError
from castor_policy.agents.admission import other_script, other_versions
from castor_policy.agents.store_keys import doctors_prefix, layout_prefix
from castor_policy.store import StoreRefusedError, StoreUnavailableError
from castor_runtime.agent.admission import software_of
from castor_runtime.agent.memory import RankLayout
from castor_runtime.agent.script_files import read_script
from castor_runtime.arena.leftovers import segments
from castor_runtime.doctor.finding import Finding, bad, good, note
from castor_runtime.launcher.job_view import JobView, read_view
from castor_runtime.store_address import UNIX, parse_store
from castor_runtime.stores.versions import fault_of
from castor_runtime.transport import Credentials, PeerClient, PeerError

if TYPE_CHECKING:
    from castor_runtime.stores.etcd import EtcdStore

SLOW_S: Final = 0.1
"""Of a read: a lease is renewed in time all the same, and every decision takes some."""
APART_S: Final = 1.0
"""Of clocks: events of different hosts are put in order by them."""

CLOCKS: Final = "set both clocks: chrony, ntpd or systemd-timesyncd"

_READS: Final = 10
_PEER_S: Final = 5.0


def names(url: str) -> Iterator[Finding]:
    """Look whether the store's address is one, and its names lead anywhere."""
    try:
        endpoints = parse_store(url).endpoints
    except ValueError as error:
        yield bad("store's address", str(error), "write it as castor run --help says")
        return
    for host, port in endpoints:
        if host == UNIX:
            continue
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            advice = "write its address in place of the name, or put it into /etc/hosts"
            yield bad("name of the store", f"{host}: {error.strerror}", advice)
        else:
            yield good("name of the store", f"{host} is {found}")


async def health(store: EtcdStore) -> Finding:
    """Look whether the store answers, how fast, and whether its version is sound."""
    what = "store"
    try:
        state = await store.state()
        if alarms := state["alarms"]:
            advice = "compact and defragment it, then etcdctl alarm disarm"
            return bad(what, f"etcd {state['version']}; alarm {', '.join(alarms)}", advice)
        took_s = []
        for _ in range(_READS):
            began_s = time.monotonic()
            await store.get_prefix(doctors_prefix(""))
            took_s.append(time.monotonic() - began_s)
    except StoreRefusedError as error:
        return bad(what, str(error), "see docs/runtime.md, Who gets in")
    except StoreUnavailableError as error:
        return bad(what, f"does not answer: {error}", "is it up, and is its port 2379 open?")
    version = state["version"]
    median_s = statistics.median(took_s)
    found = f"etcd {version}, a read in {1e3 * median_s:.1f} ms"
    if fault := fault_of(version):
        return note(what, found, fault)
    if median_s > SLOW_S:
        advice = "run it on a disk of its own, near the hosts"
        return note(what, f"{found}, slow", advice)
    return good(what, found)


async def job(
    store: EtcdStore, name: str, script: Path | None, credentials: Credentials | None
) -> list[Finding]:
    """Look at the job in a store that answers: software, and the agents that live.

    Args:
        store: of the job.
        name: of the job.
        script: as it is here; None: not known.
        credentials: for its agents; None: they are not asked.

    Raises:
        StoreUnavailableError: it does not answer any more.
    """
    view = await read_view(store, name)
    if view.spec is None:
        return [good("job", f"there is no job {name} yet: the first host makes it")]
    found = list(_software(view, script))
    if credentials is not None:
        client = PeerClient(credentials, view.spec.run)
        for agent, report in sorted(view.reports.items()):
            found.append(await _peer(client, agent, report.address))
    return found


@dataclass(frozen=True, slots=True)
class Planned:
    """What a job in the store asks of a host, whichever machine it becomes.

    Attributes:
        memory_bytes: checkpoint memory of the machine that holds most.
        held_bytes: of that, what this host has in memory already.
        state_bytes: what its trainers hold of the model's state.
        machines: that train.
        replicas: of each shard.
    """

    memory_bytes: int
    held_bytes: int
    state_bytes: int
    machines: int
    replicas: int


async def planned(store: EtcdStore, name: str) -> Planned | None:
    """Return what the job's trainers have said of their sizes; None before they have.

    Raises:
        StoreUnavailableError: it does not answer.
    """
    spec = (await read_view(store, name)).spec
    keys, _ = await store.get_prefix(layout_prefix(name))
    layouts = [RankLayout.from_message(json.loads(key.value)) for key in keys]
    parts = {layout.rank: layout for layout in layouts}
    if spec is None or len(parts) < spec.machines * spec.ranks_per_machine:
        return None

    def held(machine: int) -> int:
        return sum(
            parts[rank].part(spec.buffers_of(machine, rank)).segment_bytes
            for rank in spec.ranks_held_by(machine)
        )

    def own(machine: int) -> int:
        return sum(parts[rank].data_bytes for rank in spec.ranks_of(machine))

    machines = range(spec.machines)
    return Planned(
        memory_bytes=max(map(held, machines)),
        held_bytes=sum(one.bytes for one in segments() if one.run == spec.run),
        state_bytes=max(map(own, machines)),
        machines=spec.machines,
        replicas=max(map(len, spec.replicas)),
    )


def clock_apart(apart_s: float) -> str:
    """Return what is wrong with a clock that is so far from this host's; "" if nothing is."""
    return f"its clock is {apart_s:+.1f} s apart" if abs(apart_s) > APART_S else ""


def _software(view: JobView, script: Path | None) -> Iterator[Finding]:
    assert view.spec is not None
    if view.software is None:
        return
    path = script or Path(view.spec.script)
    try:
        own = software_of("this host", path, read_script(path), view.spec.traffic.scheme)
    except OSError as error:
        advice = "copy the script to the same path on every machine"
        yield bad("script", f"{path}: {error.strerror}", advice)
        return
    except InputError as error:
        yield bad("script", str(error), "declare the plugin as the other hosts do")
        return
    if apart := other_versions(own, view.software):
        yield bad("versions", apart, "make them the same")
    else:
        yield good("versions", "those of the job")
    if apart := other_script(own, view.software):
        yield bad("script", apart, "make it the same on all hosts")
    else:
        yield good("script", f"that of the job, {own.digest[:8]}…")


async def _peer(client: PeerClient, agent: str, address: str) -> Finding:
    what = f"agent {agent}"
    try:
        apart_s = (await client.clock(address, _PEER_S)).offset_ns / 1e9
    except (PeerError, ValueError) as error:
        advice = "is its port open from here, and the secret the same?"
        return bad(what, str(error), advice)
    if wrong := clock_apart(apart_s):
        return note(what, f"{address} answers; {wrong}", CLOCKS)
    return good(what, f"{address} answers; its clock is {1e3 * apart_s:+.1f} ms apart")
