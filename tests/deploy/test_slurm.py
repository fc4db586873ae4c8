"""`castor slurm` under a real Slurm, on hosts that share nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_lab.separate_hosts.hosts import SeparateHost
from castor_lab.separate_hosts.slurm_cluster import PROGRAMS, SlurmCluster

NODES = ("n0", "n1", "n2")
ITERATIONS = 100
PROGRAM = """#!/bin/sh
echo "$*"
[ "$1" = clean ] && exit 0
trap 'echo told; exit 93' TERM
while sleep 0.1; do [ -e /mnt/code ] && exit "$(cat /mnt/code)"; done
"""


def said(node: SeparateHost) -> str:
    return "".join(log.read_text() for log in node.path("/root").glob("j-*.log"))


def agent(node: SeparateHost) -> list[int]:
    return [pid for pid, words in node.processes().items() if "/bin/sh /mnt/castor run" in words]


@pytest.mark.long
@pytest.mark.parametrize("deployment", [(NODES, ("ctl",))], indirect=True)
def test_a_job_of_tasks_trains_on_without_one_and_ends_leave_what_they_should(
    deployment: Any,
    needs: Callable[..., None],
    program: tuple[str, ...],
    baseline: Callable[[int, int], str],
) -> None:
    needs(*PROGRAMS)
    hosts = [deployment.hosts[name] for name in NODES]
    slurm = SlurmCluster(deployment.hosts["ctl"], hosts)
    trains_without_a_task(deployment, slurm, program, baseline)
    ends(deployment, slurm, hosts)


def trains_without_a_task(
    deployment: Any,
    slurm: SlurmCluster,
    program: tuple[str, ...],
    baseline: Callable[[int, int], str],
) -> None:
    job = ("--nnodes", "2:3", "--job", "trained", "--interface", "eth0", "--lease", "3s")
    store = ("--store", deployment.store, "--secret", deployment.secret_file)
    line = (*job, *store, *program, "--iterations", str(ITERATIONS))
    slurm.type("castor", "slurm", "--submit", *line)
    deployment.wait_until(lambda: deployment.iteration() >= 5, slurm.tasks)
    on = {node: task for task, (_, node) in slurm.tasks().items()}
    taken = next(name for name in NODES if not deployment.is_spare(name))
    slurm.type("scontrol", "requeue", on[taken])
    # Slurm holds it for two minutes; the spare has its place, and the others end with the job.
    deployment.wait_until(lambda: slurm.tasks() == {on[taken]: ("PENDING", "")}, slurm.tasks)
    assert deployment.final(2) == (ITERATIONS, baseline(2, ITERATIONS))
    assert not any(deployment.hosts[name].segments() for name in NODES)
    slurm.type("scancel", on[taken])


def ends(deployment: Any, slurm: SlurmCluster, hosts: list[SeparateHost]) -> None:
    """See what becomes of tasks whose agents end: a program stands for Castor's own."""
    wait_until = deployment.wait_until
    for host in hosts:
        host.path("/mnt/castor").write_text(PROGRAM)
        host.path("/mnt/castor").chmod(0o755)
    own = ("--castor", "/mnt/castor", "--sbatch=--time=5", "--submit")
    line = ("--nnodes", "2:3", "--job", "j", "train.py", "--lr", "3")
    submitted = slurm.type("castor", "slurm", *own, *line).split()[-1]
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
    assert (
        said(hosts[2])
        == "run --on-term drain --term-patience 60s --nnodes 2:3 --job j train.py --lr 3\n"
    )

    # Its time is over: it was drained, with code 93, and waits in the queue all the same.
    slurm.type("scancel", "--signal=USR1", "--batch", on["n2"])
    wait_until(lambda: slurm.tasks()[on["n2"]][0] == "PENDING", slurm.tasks)
    assert "told" in said(hosts[2])

    came_to = deployment.hosts[slurm.tasks()[on["n1"]][1]]
    slurm.type("scancel", submitted)
    wait_until(lambda: not slurm.tasks(), slurm.tasks)
    assert not any("/mnt/castor" in one for host in hosts for one in host.processes().values())
    assert "told\nclean --job j\n" in said(came_to)


def test_the_line_says_how_many_tasks(tmp_path: Path) -> None:
    def printed(*line: str) -> str:
        done = CliRunner().invoke(app, ["slurm", *line], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    named = ("--job", "j", "x.py")
    script = printed("--before", "5min", "--nnodes", "4:6", "--job", "j", "x.py", "a b")
    assert "#SBATCH --array=0-5\n" in script
    assert "#SBATCH --signal=B:USR1@300\n" in script
    assert "run --on-term drain --term-patience 150s --nnodes 4:6 --job j x.py 'a b' &\n" in script
    assert "run --on-term end --nnodes 4 " in printed("--on-term", "end", "--nnodes", "4", *named)
    for line, why in [
        (("--job", "j", "x.py"), "--nnodes: say how many tasks"),
        (("--nnodes", "4", "x.py"), "--job: name the job"),
        (("--before", "1d", "--nnodes", "4", "--job", "j", "x.py"), "--before: Slurm takes from"),
    ]:
        with pytest.raises(InputError, match=why):
            printed(*line)
