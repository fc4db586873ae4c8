"""Drives a real fork server through its life, as an agent does; prints what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from castor_runtime.agent.log_tail import last_words
from castor_runtime.agent.script_files import read_script
from castor_runtime.agent.trainer_fork_link import TrainerForkLink
from castor_runtime.agent.trainer_fork_server import fork_trainer_server
from castor_runtime.fork_server_link import ForkServerError
from castor_runtime.processes import descendants, is_alive

SCRIPTS = {
    "speaks": """
import atexit, os, sys, neighbour
from pathlib import Path
atexit.register(lambda: Path(sys.argv[1]).write_text("left well"))
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], __name__, neighbour.NAME)
""",
    "lists": """
import sys
for name in ("deepspeed.runtime.zero.muon.muon_optimizer", "torch._inductor.compile_fx"):
    print(name in sys.modules)
""",
    "neighbour": "NAME = 'beside the script'\n",
    "leaves": "import sys; sys.exit(7)",
    "says_why": "import sys; sys.exit('no such corpus')",
    "raises": "x = 1\nraise ArithmeticError('the loss is NaN')\n",
    "writes": """
import sys
from pathlib import Path
Path(out).write_text(str({"s3fs", "castor_runtime.persistent.machine_share"} <= set(sys.modules)))
""",
    "computes": """
import torch, computing
torch.ones(4_000_000).add_(1).sum()
print("threads", torch.get_num_threads())
""",
    "computing": """
import torch
torch.set_num_threads(3)
assert torch.ones(4_000_000).add_(1).sum() == 8_000_000  # what several threads would share
""",
    "uses_gpu": "import using\n",
    "using": "import torch\ntorch.cuda._initialized = True\n",
    "uses_no_gpu": "import unusing\nprint('it runs')\n",
    "unusing": "import torch\ntorch.cuda._initialized = False\n",
    "waits": """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen(["sleep", "600"])
Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
""",
}


class Life:
    def __init__(self, folder: Path, forks: TrainerForkLink) -> None:
        self.folder = folder
        self.forks = forks
        self.found: dict[str, Any] = {}

    def script(self, name: str) -> str:
        return str(self.folder / f"{name}.py")

    async def run(self, name: str, rank: int = 3, *arguments: str) -> int:
        log = self.folder / f"{name}.log"
        environment = {"RANK": str(rank), "WORLD_SIZE": "8"}
        return await self.forks.start_trainer(rank, self.script(name), arguments, environment, log)

    async def ends(self, name: str, *arguments: str) -> dict[str, Any]:
        code = await self.forks.wait_end(await self.run(name, 3, *arguments))
        log = self.folder / f"{name}.log"
        return {"code": code, "log": log.read_text(), "last_words": last_words(log)}

    async def wait_for(self, file: Path) -> int:
        while not (file.exists() and file.read_text()):
            await asyncio.sleep(0.01)
        return int(file.read_text())


async def gone(*pids: int) -> bool:
    for _ in range(1000):
        if not any(is_alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.01)
    return False


async def live(folder: Path, pid: int, link: Any) -> None:
    forks = TrainerForkLink(link, pid)
    await forks.open()
    life = Life(folder, forks)
    found = life.found
    forks.preload(read_script(Path(life.script("speaks"))), ["s3://bucket/job"])
    await forks.wait_ready()
    for name in ("leaves", "says_why", "raises", "lists"):
        found[name] = await life.ends(name)
    left = folder / "left"
    found["speaks"] = {**await life.ends("speaks", str(left)), "atexit": left.read_text()}
    # All that a trainer would import was imported before it was forked, without a thread.
    found["threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    called = folder / "called"
    call = await forks.start_call("a call", "os:mkdir", {"path": str(called)}, folder / "call.log")
    found["call"] = [await forks.wait_end(call), called.is_dir()]
    given = {"path_name": life.script("writes"), "init_globals": {"out": str(folder / "at_hand")}}
    writer = await forks.start_call("a writer", "runpy:run_path", given, folder / "writer.log")
    found["at_hand"] = [await forks.wait_end(writer), (folder / "at_hand").read_text()]
    bad = await forks.start_call("bad", "os:no_such", {}, folder / "bad.log")
    found["bad_call"] = [await forks.wait_end(bad), last_words(folder / "bad.log")]

    for name in ("computes", "uses_gpu", "uses_no_gpu"):
        forks.preload(read_script(Path(life.script(name))), [])
        found[name] = await asyncio.wait_for(life.ends(name), 60)

    trainer = await life.run("waits", 0, str(folder / "child"))
    child = await life.wait_for(folder / "child")
    ending = asyncio.create_task(forks.wait_end(trainer))
    await asyncio.sleep(0)
    await forks.kill_all()
    found["killed"] = [await ending, await gone(trainer, child)]

    # The start that nobody waits for any more is under way when all is to be killed.
    given_up = asyncio.create_task(life.run("waits", 1, str(folder / "given_up")))
    await asyncio.sleep(0)
    given_up.cancel()
    await forks.kill_all()
    found["given_up"] = [one for one in descendants(pid) if not await gone(one)]

    trainer = await life.run("waits", 2, str(folder / "orphan"))
    await life.wait_for(folder / "orphan")
    lost = asyncio.Event()
    forks.on_lost(lost.set)
    ending = asyncio.create_task(forks.wait_end(trainer))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(lost.wait(), 30)
    child = await life.wait_for(folder / "orphan")
    found["host_lost"] = [await ending, await gone(trainer, child)]
    with contextlib.suppress(ForkServerError):
        await life.run("leaves")
        found["host_lost"].append("a lost server started a trainer")
    forks.close()
    sys.stdout.write(json.dumps(found) + "\n")


async def stop(folder: Path, pid: int, link: Any) -> None:
    """Stop the fork server: what it forked is killed all the same, and it is lost soon."""
    forks = TrainerForkLink(link, pid)
    await forks.open()
    life = Life(folder, forks)
    lost = asyncio.Event()
    forks.on_lost(lost.set)
    trainer = await life.run("waits", 0, str(folder / "child"))
    child = await life.wait_for(folder / "child")
    os.kill(pid, signal.SIGSTOP)
    await asyncio.wait_for(forks.kill_all(), 30)
    found: dict[str, Any] = {"killed": await gone(trainer, child), "lost_at_once": lost.is_set()}
    asked = asyncio.create_task(life.run("waits", 1, str(folder / "never")))
    await asyncio.sleep(0)
    await asyncio.wait_for(forks.kill_all(), 60)  # it waits for the answer to a start
    with contextlib.suppress(ForkServerError):
        await asyncio.wait_for(asked, 60)
        found["started"] = True
    await asyncio.wait_for(lost.wait(), 60)
    found["host"] = await gone(pid)
    forks.close()
    sys.stdout.write(json.dumps(found) + "\n")


async def wait(folder: Path, pid: int, link: Any) -> None:
    """Start a trainer, tell who is there, and wait to be killed."""
    forks = TrainerForkLink(link, pid)
    await forks.open()
    life = Life(folder, forks)
    trainer = await life.run("waits", 0, str(folder / "child"))
    await life.wait_for(folder / "child")
    sys.stdout.write(json.dumps([pid, trainer]) + "\n")
    sys.stdout.flush()
    await asyncio.sleep(600)


def main() -> None:
    folder = Path(sys.argv[2])
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(text)
    pid, link = fork_trainer_server()
    asyncio.run({"live": live, "stop": stop, "wait": wait}[sys.argv[1]](folder, pid, link))


if __name__ == "__main__":
    main()
