"""castor doctor: what would keep this host from taking part in a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from castor.commands.agent_flags import name_of, takes_agent_flags
from castor.commands.asking import StoreUrl, ask
from castor.commands.reading import read_option
from castor_configs.errors import InputError
from castor_policy.checkpoint_memory import FAST, shards_in_memory

if TYPE_CHECKING:
    from castor_runtime.doctor.finding import Finding
    from castor_runtime.doctor.meeting import Expected
    from castor_runtime.doctor.store import Planned
    from castor_runtime.stores import EtcdStore
    from castor_runtime.transport import Credentials

_MARKS = {"good": "green", "note": "yellow", "bad": "red"}


@takes_agent_flags
def doctor(
    context: typer.Context,
    script: Annotated[
        Path | None, typer.Argument(metavar="[SCRIPT]", help="The training program.")
    ] = None,
    *,
    store: StoreUrl = "",
    job: Annotated[str, typer.Option(metavar="NAME", help="To be compared with.")] = "",
    nproc_per_node: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainers on this host.")
    ] = None,
    shared_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="That checkpoints take on this host; default: as the job in the store plans, "
            "else twice --state-bytes for each of two copies, or as --memory says.",
        ),
    ] = "",
    memory_mode: Annotated[
        str,
        typer.Option("--memory", metavar="MODE", help="As of castor train, with --state-bytes."),
    ] = FAST,
    state_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Of the model's state that this host's trainers hold: 12 bytes · parameters / "
            "machines with Adam; default: as the job in the store has it.",
        ),
    ] = "",
    meet: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="HOSTS",
            help="Wait until doctors of so many hosts, this one among them, have met in the store; "
            "then each tries the others' ports, and how fast the next one's parts come.",
        ),
    ] = None,
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="With --meet: the others are waited for so long.")
    ] = "60s",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    **_flags: Any,
) -> None:
    """Look whether this host can take part in a job: give what `castor run` is to be given.

    Exits with 1 if something would keep it from that. What is not given is not looked at. Type it
    on all hosts at once, with --meet, to have ports tried both ways.

    Example: castor doctor --interface eth0 --ports 7000-7019 --store etcd://10.0.0.1:2379
    --job gpt2 --secret FILE --nproc-per-node 8 --state-bytes 15GB --meet 5 train.py
    """
    from castor_configs.option_tables import read_value
    from castor_configs.quantities import parse_bytes
    from castor_policy.job_options import MemoryOptions
    from castor_policy.option import options_of
    from castor_runtime.doctor import credentials, host

    given = context.params
    wanted = options_of(MemoryOptions)["mode"]
    mode = str(read_option(partial(read_value, wanted), memory_mode, "--memory"))
    memory = read_option(parse_bytes, shared_memory, "--shared-memory") if shared_memory else None
    state = read_option(parse_bytes, state_bytes, "--state-bytes") if state_bytes else None
    at_finding, at = host.address(given["listen"], given["interface"])
    tls = (given["tls_ca"], given["tls_certificate"], given["tls_key"])
    shown, proof = credentials.credentials(given["secret"], tls, at)
    own = [at_finding, host.ports(given["ports"], at), shown]
    asked = _Asked(store, job, script, proof, state)
    if meet is not None:
        asked.meets(given, at, meet, patience, ready=all(one.health != "bad" for one in own))
    of_store = asked.look() if store else []
    if asked.planned is not None:
        memory = memory or asked.planned.memory_bytes
    elif memory is None and state is not None:
        memory = shards_in_memory(mode, _replicas()) * state
    held = 0 if asked.planned is None else asked.planned.held_bytes
    found = [
        *own,
        host.shared_memory(memory, held_bytes=held),
        host.huge_pages(memory),
        host.locked_memory(),
        host.clock(),
        host.gpus(nproc_per_node),
        host.numa(),
        *of_store,
    ]
    _print(found, as_json=as_json)
    raise typer.Exit(1 if any(one.health == "bad" for one in found) else 0)


@dataclass
class _Asked:
    """What the store is asked, and what came of it.

    Attributes:
        url: of the store.
        job: its name; "": none is looked at.
        script: as it is here.
        proof: what this host proves to agents; None: they are not asked.
        state_bytes: as given; None: as the job has it.
        meeting: who is to meet, and at which address of this host; None: nobody is.
        planned: what the job in the store asks of this host, once it is known.
    """

    url: str
    job: str
    script: Path | None
    proof: Credentials | None
    state_bytes: int | None
    meeting: tuple[Expected, str] | None = None
    planned: Planned | None = None

    def meets(
        self, given: Mapping[str, Any], at: str, hosts: int, patience: str, *, ready: bool
    ) -> None:
        """Have doctors meet; `ready` says whether this host can be reached at all.

        Raises:
            InputError: something is missing for that.
        """
        from castor_configs.quantities import parse_seconds
        from castor_runtime.doctor.meeting import Expected
        from castor_runtime.launcher.train_options import check_job_name
        from castor_runtime.ports import Ports

        if not self.url or not self.job or (given["secret"] is None and not given["tls_ca"]):
            raise InputError("hosts meet by --store, --job and --secret: give them", key="--meet")
        check_job_name(self.job)
        patience_s = read_option(parse_seconds, patience, "--patience")
        if ready:
            ports = Ports.parse(given["ports"])
            self.meeting = Expected(self.job, name_of(given), hosts, patience_s, ports), at

    def look(self) -> list[Finding]:
        """Look at the store, the job in it, and the hosts that meet there."""
        from castor_runtime.doctor import store as examination
        from castor_runtime.doctor.link_rate import IterationTraffic
        from castor_runtime.doctor.meeting import meet

        found = list(examination.names(self.url))
        if any(one.health == "bad" for one in found):
            return found

        async def look(store: EtcdStore) -> None:
            found.append(await examination.health(store))
            if not self.job or found[-1].health == "bad":
                return
            found.extend(await examination.job(store, self.job, self.script, self.proof))
            self.planned = planned = await examination.planned(store, self.job)
            if self.meeting is None or self.proof is None:
                return
            expected, at = self.meeting
            machines = expected.hosts if planned is None else planned.machines
            replicas = _replicas() if planned is None else planned.replicas
            state = self.state_bytes or (planned.state_bytes if planned else 0)
            if state:
                traffic = IterationTraffic.of(state, machines, replicas)
                expected = replace(expected, traffic=traffic)
            found.extend(await meet(store, expected, at, self.proof))

        asyncio.run(ask(self.url, look))
        return found


def _replicas() -> int:
    """Return how many replicas a job has whose line does not say."""
    from castor_configs.job import LaunchOptions
    from castor_policy.option import default_of

    return int(default_of(LaunchOptions, "replicas"))


def _print(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        for one in found:
            typer.echo(json.dumps(asdict(one)))
        return
    table = Table("what", "", "found", box=None, pad_edge=False)
    for one in found:
        words = f"{one.found}\n-> {one.advice}" if one.advice else one.found
        table.add_row(one.what, Text(one.health, style=_MARKS[one.health]), Text(words))
    Console(highlight=False).print(table)
