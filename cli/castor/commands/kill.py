"""castor kill: inject a failure into a run that is going on, from another terminal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor.commands.asking import ask
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_lab.faults.fault import Fault
    from castor_runtime.launcher.run_folder import RunFolder


def kill(
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: newest under out/.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="N", help="A machine, or an agent's name: memory too.")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", help="One trainer.")] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="N", help="The agent of a machine, alone; or its name.")
    ] = None,
    root: Annotated[bool, typer.Option("--root", help="The machine of the root agent.")] = False,
    store: Annotated[bool, typer.Option("--store", help="The embedded etcd.")] = False,
    flip: Annotated[
        int | None, typer.Option(metavar="N", help="Damage a machine's part, kill its trainer.")
    ] = None,
    number: Annotated[
        str, typer.Option("--signal", metavar="SIGNAL", help="KILL, STOP or TERM.")
    ] = "KILL",
    at_iteration: Annotated[
        int | None, typer.Option(metavar="K", help="As soon as iteration K has ended.")
    ] = None,
) -> None:
    """Inject one failure into a live run.

    Example: castor kill --machine 2 --at-iteration 10
    """
    from castor_lab.faults.fault import parse_fault
    from castor_lab.faults.machines import SIGNALS
    from castor_runtime.launcher.control import ask
    from castor_runtime.launcher.run_folder import RunFolder, newest_run

    wanted = {
        "machine": machine,
        "rank": rank,
        "agent": agent,
        "flip": flip,
        "root": "" if root else None,
        "store": "" if store else None,
    }
    chosen = [(kind, target) for kind, target in wanted.items() if target is not None]
    if len(chosen) != 1:
        raise InputError("give one of --machine, --rank, --agent, --root, --store and --flip")
    signal_name = number.upper().removeprefix("SIG")
    kind, target = chosen[0]
    if signal_name not in SIGNALS:
        raise InputError(f"expected {', '.join(SIGNALS)}, not {number!r}", key="--signal")
    if signal_name != "KILL" and kind in ("store", "flip"):
        raise InputError(f"--{kind} can only be killed", key="--signal")
    folder = RunFolder(run) if run is not None else newest_run()
    record = folder.run()
    when = "now" if at_iteration is None else str(at_iteration)
    spec = f"{kind}{f':{target}' if target != '' else ''}@{when}"
    sent = "" if signal_name == "KILL" else signal_name
    fault = parse_fault(spec, machines=record.nodes, ranks_per_machine=record.ranks_per_node)
    answer = ask(folder.control_socket, {"op": "inject", "fault": spec, "signal": sent})
    if answer is None:
        if kind == "store" or at_iteration is not None:
            raise InputError("its launcher does not run, and only it can do that", file=folder.path)
        struck = _strike_alone(folder, fault, sent)
    elif answer["ok"]:
        struck = answer["struck"]
    else:
        raise InputError(answer["reason"], key=f"--{kind}")
    typer.echo(f"{signal_name} sent to {', '.join(struck)} of job {record.job}")


def _strike_alone(folder: RunFolder, fault: Fault, sent: str) -> list[str]:
    """Strike by the files of the run: its launcher is elsewhere or dead, nothing restarts."""
    from dataclasses import replace

    from castor_lab.faults.fault import FaultKind
    from castor_lab.faults.machines import TargetMissingError, strike

    record = folder.run()
    root = ""
    if fault.kind == FaultKind.ROOT:
        root = asyncio.run(_root_of(record.store, record.job))
    try:
        struck = strike(
            folder,
            replace(fault, signal=sent),
            ranks_per_machine=record.ranks_per_node,
            root=root,
            doomed=lambda _: None,
        )
    except TargetMissingError as error:
        raise InputError(str(error), file=folder.path) from error
    return [one.target for one in struck]


async def _root_of(url: str, job: str) -> str:
    from castor_runtime.launcher.job_view import read_view

    view = await ask(url, lambda store: read_view(store, job), key="--root")
    return view.root
