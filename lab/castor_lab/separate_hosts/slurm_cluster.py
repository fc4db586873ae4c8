"""Slurm on separate hosts: Debian's slurmctld on one, slurmd on the others, munged on all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Final

from castor_lab.emulated_cluster.iproute import KernelRefusedError
from castor_lab.faults.machines import suspend
from castor_lab.separate_hosts.hosts import SeparateHost

PROGRAMS: Final = ("slurmctld", "slurmd", "munged", "sbatch")

_FOLDER: Final = "/mnt/slurm"
_CONFIGURATION: Final = """\
ClusterName=lab
SlurmctldHost={controller}({address})
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdTimeout=10
ReturnToService=2
KillWait=30
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_UP_S: Final = 30.0


class SlurmCluster:
    """A Slurm whose nodes are separate hosts; what is typed is typed at the controller.

    Args:
        controller: its host.
        nodes: theirs.

    Raises:
        KernelRefusedError: the nodes do not become idle.
    """

    def __init__(self, controller: SeparateHost, nodes: Sequence[SeparateHost]) -> None:
        self._controller = controller
        lines = (
            f"NodeName={node.name} NodeAddr={node.address} CPUs=2 RealMemory=1000" for node in nodes
        )
        self._configuration = _CONFIGURATION.format(
            controller=controller.name,
            address=controller.address,
            folder=_FOLDER,
            nodes="\n".join(lines),
        )
        self._key = os.urandom(1024)
        for host in (controller, *nodes):
            self._furnish(host)
        self._begin(controller, "slurmctld", "-D", "-c")
        for node in nodes:
            self._begin(node, "slurmd", "-D", "-N", node.name)
        give_up_s = time.monotonic() + _UP_S
        while set(self.type("sinfo", "-h", "-N", "-o", "%T").split()) != {"idle"}:
            if time.monotonic() > give_up_s:
                raise KernelRefusedError(f"Slurm did not start: {self.type('sinfo')}")
            time.sleep(0.2)

    def _furnish(self, host: SeparateHost) -> None:
        folders = (f"{_FOLDER}/state", f"{_FOLDER}/spool", "/run/munge", "/var/log/munge")
        host.run("mkdir", "-p", "-m", "755", *folders)
        host.path(f"{_FOLDER}/slurm.conf").write_text(self._configuration)
        host.path(f"{_FOLDER}/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = host.path(f"{_FOLDER}/munge.key")
        key.write_bytes(self._key)
        key.chmod(0o600)
        host.begin(
            *("munged", "--foreground", "--force", f"--key-file={_FOLDER}/munge.key"),
            *("--socket=/run/munge/munge.socket.2", "--pid-file=/run/munge/munged.pid"),
            *("--log-file=/var/log/munge/munged.log", f"--seed-file={_FOLDER}/munge.seed"),
        )
        give_up_s = time.monotonic() + _UP_S
        while not host.path("/run/munge/munge.socket.2").exists() and time.monotonic() < give_up_s:
            time.sleep(0.02)

    @staticmethod
    def _begin(host: SeparateHost, *arguments: str) -> None:
        host.begin("env", f"SLURM_CONF={_FOLDER}/slurm.conf", *arguments)

    def _try(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with_settings = ("env", f"SLURM_CONF={_FOLDER}/slurm.conf", *arguments)
        return self._controller.run(*with_settings, check=False)

    def type(self, *arguments: str) -> str:
        """Run one of Slurm's commands at the controller; return what it says."""
        return self._try(*arguments).stdout

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Return what is in the queue: task -> (state, node).

        Raises:
            KernelRefusedError: the controller does not answer.
        """
        give_up_s = time.monotonic() + _UP_S
        while (listed := self._try("squeue", "-h", "-r", "-o", "%i %T %N")).returncode != 0:
            if time.monotonic() > give_up_s:
                raise KernelRefusedError(f"Slurm's controller is silent: {listed.stderr}")
        words = (line.split() for line in listed.stdout.splitlines())
        return {one[0]: (one[1], one[2] if len(one) > 2 else "") for one in words}

    def hasten(self, task: str) -> None:
        """Have a task that was requeued begin soon: Slurm lets it wait for two minutes.

        It may not begin in the second in which it ended: slurmd refuses that ("already killed, do
        not launch batch job"), and Slurm then takes the task as failed.
        """
        self.type("scontrol", "update", f"job={task}", "StartTime=now+2seconds")

    @contextlib.contextmanager
    def silent_controller(self) -> Iterator[None]:
        """Have the controller answer nobody for a while: its process stands still."""
        (pid,) = (
            pid for pid, words in self._controller.processes().items() if words == "slurmctld -D -c"
        )
        suspend(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
