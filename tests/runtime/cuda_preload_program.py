"""Drives a real fork server under a CUDA build of torch, over a stub of its driver.

Run by that build's Python as `cuda_preload_program.py FOLDER PATH...`: further places of modules
come after its own, so that its torch is the one that is imported. Prints what came of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from deepspeed.accelerator import get_accelerator
calls = Path(os.environ["CASTOR_STUB_CALLS"])
before = calls.read_text() if calls.exists() else ""
found = {
    "cuda": torch.version.cuda,
    "available": torch.cuda.is_available(),
    "bad_fork": torch.cuda._is_in_bad_fork(),
    "initialized": torch.cuda.is_initialized(),
    "accelerator": get_accelerator().device_name(),
    "calls_before": before.split(),
}
torch._C._cuda_getDeviceCount()  # the first use: the stub must tell of it
found["calls_after"] = calls.read_text().split()
Path(sys.argv[1]).write_text(json.dumps(found))
"""


async def play(folder: Path) -> None:
    from castor_runtime.agent.script_files import read_script  # noqa: PLC0415 - see the head
    from castor_runtime.agent.trainer_fork_link import TrainerForkLink  # noqa: PLC0415
    from castor_runtime.agent.trainer_fork_server import fork_trainer_server  # noqa: PLC0415

    pid, link = fork_trainer_server()
    forks = TrainerForkLink(link, pid)
    await forks.open()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    forks.preload(read_script(script), [])
    await forks.wait_ready()
    threads = [task.joinpath("comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    environment = {"RANK": "0", "WORLD_SIZE": "1"}
    out, log = folder / "found", folder / "log"
    trainer = await forks.start_trainer(0, str(script), (str(out),), environment, log)
    code = await forks.wait_end(trainer)
    found = json.loads(out.read_text()) if out.exists() else {}
    forks.close()
    sys.stdout.write(
        json.dumps({**found, "threads": threads, "code": code, "log": log.read_text()}) + "\n"
    )


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    asyncio.run(play(Path(sys.argv[1])))
