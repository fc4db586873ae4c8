"""What many machines cost their store and their root: `python measure.py --machines N --out FILE`.

A real etcd on this machine and N agents (`member.py`) in a few processes: the policy's Worker and
Root and the runtime's sessions, leases, reports and watches. The root has a process of its own. It
measures a start, a while of training, losses of 1, 10 and 100 machines, and the root's own loss.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import agents_prefix, job_prefix, plan_key, root_key, spec_key
from castor_policy.membership import WatchLimits
from castor_policy.placement import place
from castor_policy.store import Put, Txn
from castor_runtime.stores import EmbeddedEtcd, open_store

LEASE_S = 60.0
"""Long: the processes share two cores, and a starved one must not lose its lease."""

PATIENCE_S = 400.0
TELL_S = 10.0
LOSSES = (100, 10, 1)
TRAINING_S = 15.0


class Process:
    """Some of the agents."""

    def __init__(self, url: str, spec: Path, names: list[str], *, is_root: bool) -> None:
        self.names = names
        command = [sys.executable, str(Path(__file__).with_name("crowd.py")), url, str(spec)]
        self._process = subprocess.Popen(
            [*command, ",".join(names), str(int(is_root))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Watcher:
    """Sees all that is in the store, from outside, and when."""

    def __init__(self, url: str, job: str, machines: int) -> None:
        self.store = open_store(url, timeout_s=20.0)
        self.job = job
        self.machines = machines
        self.plans: list[tuple[float, Plan, int]] = []
        self.roots: list[tuple[float, str]] = []
        self.reports: dict[str, AgentReport] = {}
        self.report_changes = 0
        self.changed = asyncio.Event()

    async def follow(self) -> None:
        async with aclosing(self.store.watch(job_prefix(self.job), 1)) as changes:
            async for events in changes:
                for event in events:
                    self._see(event)
                self.changed.set()

    def _see(self, event: Any) -> None:
        now_s = time.monotonic()
        if event.key == plan_key(self.job) and event.value:
            self.plans.append((now_s, Plan.from_json(event.value), len(event.value)))
        elif event.key == root_key(self.job):
            self.roots.append((now_s, event.value or ""))
        elif event.key.startswith(agents_prefix(self.job)):
            self.report_changes += 1
            name = event.key.removeprefix(agents_prefix(self.job))
            if event.value is None:
                self.reports.pop(name, None)
            else:
                self.reports[name] = AgentReport.from_json(event.value)

    async def until(self, condition: Any, what: str) -> float:
        began_s = told_s = time.monotonic()
        while not condition():
            now_s = time.monotonic()
            if now_s > began_s + PATIENCE_S:
                raise SystemExit(f"{self.machines} machines: {what} took {PATIENCE_S:g} s")
            if now_s > told_s + TELL_S:
                told_s = now_s
                print(f"{now_s - began_s:5.0f} s for {what}: {self.seen()}", file=sys.stderr)
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.changed.wait()
        return time.monotonic()

    def seen(self) -> str:
        """Return what there is so far, for people."""
        states = Counter(f"{one.state} in {one.generation}" for one in self.reports.values())
        return f"{len(self.plans)} plans; agents " + ", ".join(
            f"{number} {state}" for state, number in sorted(states.items())
        )

    def all_run(self, generation: int) -> bool:
        plan = self.plans[-1][1] if self.plans else None
        if plan is None or plan.generation < generation or plan.phase != "load":
            return False
        found = [self.reports.get(name) for name in plan.agents]
        return all(
            one is not None and one.generation == plan.generation and one.state == "running"
            for one in found
        )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def totals(processes: list[Process], command: str = "counts") -> tuple[Counter[str], list[dict]]:
    answers = [process.ask(command) for process in processes]
    for answer in answers:
        if answer["errors"]:
            raise SystemExit(f"an agent failed: {answer['errors'][:3]}")
    return sum((Counter(a["counts"]) for a in answers), Counter()), answers


class Trial:
    """One job of one size.

    Args:
        machines: N.
        folder: for etcd's data.
        crowds: processes that all agents but the root share.
    """

    def __init__(self, machines: int, folder: Path, crowds: int) -> None:
        self.losses = [lost for lost in LOSSES if lost <= machines // 5]
        self.spares = sum(self.losses) + 1
        self.etcd = EmbeddedEtcd(folder / "etcd")
        self.etcd.start()
        placement = place("mixed", machines, 2)
        self.spec = JobSpec(
            f"s{secrets.token_hex(4)}",
            machines,
            1,
            placement.kind,
            placement.replicas,
            "train.py",
            limits=WatchLimits(lease_s=LEASE_S),
        )
        self.document = folder / "spec.json"
        self.document.write_text(self.spec.to_json(), encoding="utf-8")
        self.watcher = Watcher(self.etcd.url, self.spec.job, machines)
        self.crowds = crowds
        self.processes: list[Process] = []

    async def measure(self, note: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Go through all of it; `note` gets what there is after each step."""
        put = Put(spec_key(self.spec.job), self.spec.to_json())
        await self.watcher.store.transact(Txn((), (put,)))
        following = asyncio.create_task(self.watcher.follow())
        sizes = {"machines": self.spec.machines, "standbys": self.spares, "lease_s": LEASE_S}
        result: dict[str, Any] = {**sizes, "start": await self.start()}
        result["plan_bytes"] = self.watcher.plans[-1][2]
        try:
            note(result)
            result["training"] = await self.during(lambda: asyncio.sleep(TRAINING_S, {}))
            for lost in self.losses:
                note(result)
                result[f"loss_{lost}"] = await self.during(partial(self.lose, lost))
            note(result)
            result["election"] = await self.lose_the_root()
            return result
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self.watcher.store.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.etcd.close()

    async def start(self) -> dict[str, Any]:
        """Start all agents, and wait until all train."""
        began_s, watcher, url = time.monotonic(), self.watcher, self.etcd.url
        self.processes.append(Process(url, self.document, ["node-0"], is_root=True))
        await watcher.until(lambda: watcher.roots, "the first election")
        names = [f"node-{n}" for n in range(1, self.spec.machines)]
        names += [f"spare-{n}" for n in range(self.spares)]
        for number in range(self.crowds):
            mine = names[number :: self.crowds]
            self.processes.append(Process(url, self.document, mine, is_root=False))
        running_s = await watcher.until(lambda: watcher.all_run(1), "the start")
        counts, _ = await asyncio.to_thread(totals, self.processes)
        return {"seconds": running_s - began_s, "plans": len(watcher.plans), **counts}

    async def during(self, what: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Return what something found, and all that was spent meanwhile."""
        watcher, etcd = self.watcher, self.etcd.pid or 0
        before, told = await asyncio.to_thread(totals, self.processes)
        plans, reports, etcd_s = len(watcher.plans), watcher.report_changes, cpu_s(etcd)
        since_s = time.monotonic()
        found = await what()
        after, now = await asyncio.to_thread(totals, self.processes)
        return {
            **found,
            "wall_s": time.monotonic() - since_s,
            "plans": len(watcher.plans) - plans,
            "reports": watcher.report_changes - reports,
            "etcd_cpu_s": cpu_s(etcd) - etcd_s,
            "root_cpu_s": now[0]["cpu_s"] - told[0]["cpu_s"],
            "root_decides_cpu_s": now[0]["decide_s"] - told[0]["decide_s"],
            "agents_cpu_s": sum(a["cpu_s"] - b["cpu_s"] for a, b in zip(now, told, strict=True)),
            **{key: after[key] - before[key] for key in sorted(after)},
        }

    async def lose(self, lost: int) -> dict[str, Any]:
        """Lose so many machines at once; standbys take their places."""
        watcher = self.watcher
        plan, first = watcher.plans[-1][1], len(watcher.plans)
        able = [name for name in plan.agents if name.startswith("node-") and name != "node-0"]
        gone = set(able[:: max(1, len(able) // lost)][:lost])
        for process in self.processes[1:]:
            mine = sorted(gone.intersection(process.names))
            await asyncio.to_thread(process.ask, f"lose {' '.join(mine)}")
        lost_s = time.monotonic()
        running_s = await watcher.until(
            lambda: (
                watcher.all_run(plan.generation + 1)
                and not gone.intersection(watcher.plans[-1][1].agents)
            ),
            f"the loss of {lost}",
        )
        made = watcher.plans[first:]
        loads = [at_s for at_s, one, _ in made if one.phase == "load"]
        return {
            "first_plan_s": made[0][0] - lost_s,
            "gathered_s": loads[-1] - made[0][0],
            "running_s": running_s - lost_s,
            "generations": watcher.plans[-1][1].generation - plan.generation,
        }

    async def lose_the_root(self) -> dict[str, Any]:
        """Lose the root and its machine: all others stand for root at once."""
        watcher, job, others = self.watcher, self.spec.job, self.processes[1:]
        await asyncio.to_thread(totals, others, "campaign")
        before, _ = await asyncio.to_thread(totals, others)
        keys, _ = await watcher.store.get_prefix(job_prefix(job))
        its = {root_key(job), agents_prefix(job) + "node-0"}
        roots, plans = len(watcher.roots), len(watcher.plans)
        generation = watcher.plans[-1][1].generation
        self.processes[0].kill()
        lost_s = time.monotonic()
        for lease in {key.lease for key in keys if key.key in its and key.lease}:
            await watcher.store.revoke(lease)
        await watcher.until(lambda: any(name for _, name in watcher.roots[roots:]), "an election")
        await watcher.until(lambda: len(watcher.plans) > plans, "the new root's first plan")
        running_s = await watcher.until(lambda: watcher.all_run(generation + 1), "the recovery")
        after, _ = await asyncio.to_thread(totals, others)
        elected_s = next(at_s for at_s, name in watcher.roots[roots:] if name)
        return {
            "elected_s": elected_s - lost_s,
            "first_plan_s": watcher.plans[plans][0] - lost_s,
            "running_s": running_s - lost_s,
            "plans": len(watcher.plans) - plans,
            **{key: after[key] - before[key] for key in sorted(after)},
        }


async def measure(
    machines: int, folder: Path, crowds: int, note: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure one size."""
    trial = Trial(machines, folder, crowds)
    try:
        return await trial.measure(note)
    finally:
        trial.close()


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, required=True)
    parser.add_argument("--crowds", type=int, default=4, help="processes that the agents share")
    parser.add_argument("--out", type=Path, required=True, help="JSON, an object a line, added to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="castor-scale-") as folder:
        part = given.out.with_suffix(".part")

        def note(found: dict[str, Any]) -> None:
            """Keep what there is, should it be stopped."""
            part.write_text(json.dumps(found), encoding="utf-8")

        result = asyncio.run(measure(given.machines, Path(folder), given.crowds, note))
    with given.out.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
