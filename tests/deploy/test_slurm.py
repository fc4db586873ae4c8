"""`castor slurm` under a real Slurm; a program stands for Castor's own on the nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_lab.separate_hosts.hosts import SeparateHost, SeparateHosts
from castor_lab.separate_hosts.slurm_cluster import PROGRAMS, SlurmCluster

NODES = ("n0", "n1", "n2")
PROGRAM = """#!/bin/sh
echo "$*"
[ "$1" = clean ] && exit 0
trap 'exit 143' TERM
while sleep 0.1; do [ -e /mnt/code ] && exit "$(cat /mnt/code)"; done
"""


def wait_until(holds: Callable[[], bool], why: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 30.0
    while not holds():
        assert time.monotonic() < give_up_s, why()
        time.sleep(0.1)


@pytest.fixture
def nodes(needs: Callable[..., None]) -> Iterator[tuple[SlurmCluster, list[SeparateHost]]]:
    needs("ip", "unshare", "nsenter", "mount", "hostname", *PROGRAMS, root=True)
    with SeparateHosts("slurm", ["ctl", *NODES]) as hosts:
        yield SlurmCluster(hosts["ctl"], [hosts[name] for name in NODES]), [hosts[n] for n in NODES]


def said(node: SeparateHost) -> str:
    return "".join(log.read_text() for log in node.path("/root").glob("*.log"))


def agent(node: SeparateHost) -> list[int]:
    return [pid for pid, words in node.processes().items() if "/bin/sh /mnt/castor run" in words]


@pytest.mark.long
def test_tasks_are_agents_that_end_come_again_or_leave_nothing(
    nodes: tuple[SlurmCluster, list[SeparateHost]],
) -> None:
    slurm, hosts = nodes
    for host in hosts:
        host.path("/mnt/castor").write_text(PROGRAM)
        host.path("/mnt/castor").chmod(0o755)
    own = ("--castor", "/mnt/castor", "--sbatch=--time=5", "--submit")
    line = ("--nnodes", "2:3", "--job", "j", "train.py", "--lr", "3")
    assert "Submitted batch job 1" in slurm.type("castor", "slurm", *own, *line)
    wait_until(lambda: all(agent(host) for host in hosts), slurm.tasks)
    on = {node: task for task, (_, node) in slurm.tasks().items()}
    assert set(on) == set(NODES)

    # Stopped by its user: the task is over. Killed: it waits in the queue, to come again.
    hosts[0].path("/mnt/code").write_text("93")
    os.kill(agent(hosts[1])[0], signal.SIGKILL)
    wait_until(
        lambda: slurm.tasks() == {on["n1"]: ("PENDING", ""), on["n2"]: ("RUNNING", "n2")},
        slurm.tasks,
    )
    hosts[0].path("/mnt/code").unlink()
    slurm.type("scontrol", "update", f"job={on['n1']}", "StartTime=now")  # else in two minutes
    wait_until(lambda: slurm.tasks()[on["n1"]][0] == "RUNNING", slurm.tasks)
    assert said(hosts[2]) == "run --nnodes 2:3 --job j train.py --lr 3\n"

    slurm.type("scancel", "1")
    wait_until(lambda: not slurm.tasks(), slurm.tasks)
    assert not any("/mnt/castor" in one for host in hosts for one in host.processes().values())
    assert said(hosts[2]).endswith("clean --job j\n")


def test_the_line_says_how_many_tasks(tmp_path: Path) -> None:
    def printed(*line: str) -> str:
        done = CliRunner().invoke(app, ["slurm", *line], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    script = printed("--before", "5min", "--nnodes", "4:6", "--job", "j", "x.py", "a b")
    assert "#SBATCH --array=0-5\n" in script
    assert "#SBATCH --signal=B:TERM@300\n" in script
    assert "run --nnodes 4:6 --job j x.py 'a b' &\n" in script
    for line, why in [
        (("--job", "j", "x.py"), "--nnodes: say how many tasks"),
        (("--nnodes", "4", "x.py"), "--job: name the job"),
        (("--before", "1d", "--nnodes", "4", "--job", "j", "x.py"), "--before: Slurm takes from"),
    ]:
        with pytest.raises(InputError, match=why):
            printed(*line)
