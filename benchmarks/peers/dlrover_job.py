"""Start DLRover's local master, then `dlrover-run` against it.

`dlrover-run --standalone`, which does both, fails with torch 2.13: "SubprocessHandler.__init__()
missing 1 required positional argument: 'numa_options'".
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

_START_S = 60.0


def main() -> int:
    """Run it with the ranks and the program of the command line; return its exit code."""
    ranks, *program = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    master = subprocess.Popen(
        [
            *(sys.executable, "-u", "-m", "dlrover.python.master.main", "--port", str(port)),
            *("--node_num", "1", "--job_name", "bench", "--platform", "local"),
        ]
    )
    try:
        _wait_for(port)
        address = {"DLROVER_MASTER_ADDR": f"127.0.0.1:{port}", "NODE_ID": "0", "NODE_RANK": "0"}
        run = Path(sys.executable).parent / "dlrover-run"
        options = ["--nnodes=1", f"--nproc_per_node={ranks}", "--max_restarts=3"]
        options.append("--monitor_interval=0.1")
        return subprocess.call([str(run), *options, *program], env=os.environ | address)
    finally:
        master.kill()
        master.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("DLRover's master does not listen")


if __name__ == "__main__":
    sys.exit(main())
