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
from castor_lab.faults.machines import suspend
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


MAIN = '\nif __name__ == "__main__":\n'
"""How the training program begins: here it waits, so that the spare is there before it goes on."""
GATE = """\
    while not Path("/mnt/go").exists():
        __import__("time").sleep(0.05)
"""


def said(node: SeparateHost, job: str = "j") -> str:
    return "".join(log.read_text() for log in node.path("/root").glob(f"{job}-*.log"))


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


def places(deployment: Any) -> list[str]:
    """Return the nodes whose agents have a place."""
    return [name for name in NODES if deployment.machine(name) is not None]


def trains_without_a_task(
    deployment: Any,
    slurm: SlurmCluster,
    program: tuple[str, ...],
    baseline: Callable[[int, int], str],
) -> None:
    job = ("--nnodes", "2:3", "--job", "trained", "--interface", "eth0", "--lease", "3s")
    store = ("--store", deployment.store, "--secret", deployment.secret_file)
    example = Path(program[0])
    text = ("--text", str(example.parent / "text" / "harbour.txt"))
    gated = example.read_text().replace(MAIN, f"{MAIN}{GATE}")
    assert GATE in gated
    for host in deployment.hosts:
        host.path("/mnt/train.py").write_text(gated)
    line = (*job, *store, "/mnt/train.py", *program[1:], *text, "--iterations", str(ITERATIONS))
    slurm.type("castor", "slurm", "--submit", *line)
    deployment.wait_until(lambda: len(places(deployment)) == 2, slurm.tasks)
    deployment.wait_until(lambda: any(map(deployment.is_spare, NODES)), slurm.tasks)
    for host in deployment.hosts:
        host.path("/mnt/go").touch()
    deployment.wait_until(lambda: deployment.iteration() >= 5, slurm.tasks)
    on = {node: task for task, (_, node) in slurm.tasks().items()}
    told, lost = places(deployment)

    # Its time is over soon: the spare has its place, and nothing is trained twice.
    drained = "drained: this machine has no place any more"
    slurm.type("scancel", "--signal=USR1", "--batch", on[told])
    deployment.wait_until(lambda: drained in said(deployment.hosts[told], "trained"), slurm.tasks)

    # Another node is taken away, and no spare is there: the task that comes again has its place.
    slurm.type("scontrol", "requeuehold", on[lost])
    assert deployment.redone(until_generation=2) == {}
    deployment.wait_until(lambda: slurm.tasks()[on[told]][0] == "PENDING", slurm.tasks)
    slurm.hasten(on[told])
    deployment.wait_until(lambda: slurm.tasks() == {on[lost]: ("PENDING", "")}, slurm.tasks)
    assert deployment.final(2) == (ITERATIONS, baseline(2, ITERATIONS))
    assert not any(deployment.hosts[name].segments() for name in NODES)
    slurm.type("scancel", on[lost])


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

    # Stopped by its user: the task is over. Killed: it waits in the queue, to come again, be the
    # controller too slow to answer at first.
    with slurm.silent_controller():
        os.kill(agent(hosts[1])[0], signal.SIGKILL)
        wait_until(lambda: "slurm_load_jobs error" in said(hosts[1]), lambda: said(hosts[1]))
    hosts[0].path("/mnt/code").write_text("93")
    wait_until(
        lambda: slurm.tasks() == {on["n1"]: ("PENDING", ""), on["n2"]: ("RUNNING", "n2")},
        slurm.tasks,
    )
    hosts[0].path("/mnt/code").unlink()
    slurm.hasten(on["n1"])
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
    wait_until(lambda: "told\nclean --job j\n" in said(came_to), lambda: said(came_to))

    # Cancelled, and its agent ends before its shell is told: Slurm signals them one by one.
    submitted = slurm.type("castor", "slurm", *own, "--nnodes", "1", "--job", "late", "t.py")
    wait_until(lambda: any(map(agent, hosts)), slurm.tasks)
    (host,) = filter(agent, hosts)
    (step,) = (pid for pid, words in host.processes().items() if words.startswith("slurmstepd:"))
    suspend(step)
    slurm.type("scancel", submitted.split()[-1])
    host.path("/mnt/code").write_text("93")
    wait_until(lambda: "clean --job late" in said(host, "late"), lambda: said(host, "late"))
    assert "told" not in said(host, "late")
    os.kill(step, signal.SIGCONT)
    wait_until(lambda: not slurm.tasks(), slurm.tasks)


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
