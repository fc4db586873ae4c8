"""A process with some of the agents: `python crowd.py STORE SPEC.json NAME[,NAME...] ROOT`.

It reads a command a line (`campaign`, `lose NAME...`, `counts`, `end`) and answers each with a line
of JSON. ROOT 1: its agents stand for root from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from pathlib import Path

import grpc._common
from member import CountedStore, Member

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.stores import open_store

# Threads of gRPC that wait look up ten times a second, whether a signal came. An agent has three;
# here are thousands, which would do nothing else.
grpc._common.MAXIMUM_WAIT_TIMEOUT = 60.0


async def serve(url: str, spec: JobSpec, names: list[str], *, campaigns: bool) -> None:
    counts: Counter[str] = Counter()
    store = open_store(url, timeout_s=20.0)
    counted = CountedStore(store, counts)
    members: dict[str, Member] = {}
    tasks: dict[str, asyncio.Task[None]] = {}
    for name in names:
        standby = name.startswith("spare")
        members[name] = Member(spec, name, counted, standby=standby, campaigns=campaigns)
        tasks[name] = asyncio.create_task(members[name].run())
        await asyncio.sleep(0.002)
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        command, *given = line.split() or ["end"]
        if command == "campaign":
            for member in members.values():
                member.campaigns = True
        elif command == "lose":
            for name in given:
                tasks.pop(name).cancel()
                members.pop(name)
        elif command == "end":
            break
        answer = {
            "counts": dict(counts),
            "cpu_s": time.process_time(),
            "decide_s": sum(member.decide_s for member in members.values()),
            "decisions": sum(member.decisions for member in members.values()),
            "errors": [
                str(t.exception()) for t in tasks.values() if t.done() and not t.cancelled()
            ],
        }
        print(json.dumps(answer), flush=True)
    for task in tasks.values():
        task.cancel()
    with contextlib.suppress(Exception):
        await asyncio.wait(tasks.values(), timeout=5.0)


if __name__ == "__main__":
    where, document, which, is_root = sys.argv[1:]
    job = JobSpec.from_json(Path(document).read_text(encoding="utf-8"))
    asyncio.run(serve(where, job, which.split(","), campaigns=is_root == "1"))
