"""`castor launch` over real ssh: a program stands for Castor's own, which other tests run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from castor_lab.separate_hosts.disk import environment

pytestmark = pytest.mark.long

NODES = ("a", "b")
PROGRAM = """#!/bin/sh
echo "$0 $*, $WORD, in $PWD"
trap 'echo ends; exit 143' TERM
while [ ! -e /mnt/go ]; do sleep 0.1; done
echo finished
exit 93
"""


class Desk:
    """A host at which somebody types `castor launch`; its last node does not exist."""

    def __init__(self, deployment: Any) -> None:
        self.host = deployment.hosts["desk"]
        self.nodes = [deployment.hosts[name] for name in NODES]
        deployment.let_in("desk")
        for node in self.nodes:
            node.path("/mnt/castor").write_text(PROGRAM)
            node.path("/mnt/castor").chmod(0o755)
        lines = [f"{node.address} slots=2" for node in self.nodes]
        self.host.path("/root/hosts").write_text("\n".join([*lines, "10.77.0.99 slots=2"]))

    def launch(self) -> subprocess.Popen[str]:
        line = [
            *("castor", "launch", "--hostfile", "hosts", "--castor", "/mnt/castor"),
            *("--env", "WORD=a 'word'", "--ssh", "StrictHostKeyChecking=accept-new"),
            *(
                "--ssh",
                "ConnectTimeout=1",
                "--nnodes",
                "2:3",
                "--job",
                "j",
                "train.py",
                "--env",
                "x",
            ),
        ]
        return subprocess.Popen(
            self.host.command(*line),
            env=environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def send(self, number: int) -> None:
        (pid,) = [p for p, c in self.host.processes().items() if "/bin/castor launch" in c]
        os.kill(pid, number)

    def alive(self) -> list[bool]:
        return [any("/mnt/castor" in c for c in n.processes().values()) for n in self.nodes]


def heard(launch: subprocess.Popen[str], *words: str) -> str:
    """Return what is said until each of `words` was."""
    assert launch.stdout is not None
    said = ""
    while not all(word in said for word in words):
        line = launch.stdout.readline()
        assert line, said
        said += line
    return said


@pytest.mark.parametrize("deployment", [(NODES, ("desk",))], indirect=True)
def test_hosts_are_started_followed_left_alone_and_ended(
    deployment: Any, needs: Callable[..., None]
) -> None:
    needs("ssh", "sshd", "ssh-keygen")
    desk = Desk(deployment)
    given = "run --nproc-per-node 2 --nnodes 2:3 --job j train.py --env x, a 'word', in /root"
    both = [f"{node.address} | /mnt/castor {given}" for node in desk.nodes]

    first = desk.launch()
    heard(first, *both, "host 10.77.0.99 cannot be reached, the others go on: ssh: connect to")
    desk.send(signal.SIGKILL)
    first.communicate(timeout=60)
    assert desk.alive() == [True, True]

    again = desk.launch()
    heard(again, *both, "runs there already, and is followed")
    desk.send(signal.SIGINT)
    said, _ = again.communicate("d\n", timeout=60)
    assert "stop the job on all hosts (s), leave it running (d), go on (Enter)?" in said
    assert "job j runs on; launch it again to follow it" in said
    assert (again.returncode, desk.alive()) == (130, [True, True])

    third = desk.launch()
    heard(third, *both)
    desk.send(signal.SIGINT)
    said, _ = third.communicate("s\n", timeout=60)
    assert said.count("| ends") == 2
    assert said.count("its agent ended with code 143") == 2
    assert (third.returncode, desk.alive()) == (143, [False, False])

    fourth = desk.launch()
    heard(fourth, *both)
    desk.nodes[0].path("/mnt/go").touch()
    heard(fourth, f"host {desk.nodes[0].address}: its agent ended with code 93")
    desk.nodes[1].kill()
    said, _ = fourth.communicate(timeout=60)
    assert f"host {desk.nodes[1].address} was lost" in said
    assert fourth.returncode == 93
