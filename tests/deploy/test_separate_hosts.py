"""A job on hosts that share nothing, launched over ssh by somebody who is then killed.

Two hosts and a spare. On four and one it takes twice as long, and shows the same:
`CASTOR_DEPLOY_TRAIN=4 python -m pytest tests/deploy/test_separate_hosts.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from castor_records.events.event import of_kind
from castor_records.events.failures import Detected

pytestmark = pytest.mark.long

ITERATIONS = 100
TRAIN = int(os.environ.get("CASTOR_DEPLOY_TRAIN", "2"))
NODES = tuple("abcdefghi"[: TRAIN + 1])
KERNEL = (7100, 7999)


def has_ended(node: Any) -> bool:
    return all("sshd" in one for one in node.processes().values())


@pytest.mark.parametrize("deployment", [(NODES, ("desk",))], indirect=True)
def test_a_cable_a_store_and_a_host_are_lost_and_training_ends_as_ever(
    deployment: Any,
    needs: Callable[..., None],
    program: tuple[str, ...],
    baseline: Callable[[int, int], str],
    tmp_path: Path,
) -> None:
    needs("ssh", "sshd", "ssh-keygen", "sysctl")
    hosts, job = deployment.hosts, "deploy"
    deployment.let_in("desk")
    nodes = [hosts[name] for name in NODES]
    for node in nodes:
        node.run("sysctl", "-qw", "net.ipv4.ip_local_port_range={} {}".format(*KERNEL))
    hosts["desk"].path("/root/hosts").write_text("\n".join(node.address for node in nodes))
    line = [
        *("castor", "launch", "--hostfile", "hosts", "--ssh", "StrictHostKeyChecking=accept-new"),
        *("--env", "OMP_NUM_THREADS=1", "--nnodes", f"{TRAIN}:{len(NODES)}", "--job", job),
        *("--interface", "eth0"),
        *("--store", deployment.store, "--secret", deployment.secret_file, "--lease", "3s"),
        *("--ports", "7000-7019", *program, "--iterations", str(ITERATIONS)),
    ]
    said = tmp_path / "said"

    def goes_on(iterations: int) -> None:
        wanted = deployment.iteration() + iterations
        deployment.wait_until(lambda: deployment.iteration() >= wanted, said.read_text)

    first = hosts["desk"].begin(*line, log=said)
    goes_on(5)
    hosts["desk"].run("pkill", "-KILL", "-f", "castor launch")
    assert first.wait(60) == -signal.SIGKILL
    promised = {22, *range(7000, 7020), *range(KERNEL[0], KERNEL[1] + 1)}
    for node in nodes:
        assert {address for address, _ in node.listens()} == {node.address}
        assert {port for _, port in node.listens()} <= promised
        assert (node.address, 7000) in node.listens()
    met = {port for node in nodes for _, port in node.listens() if 7001 <= port <= 7019}
    assert len(met) == 1, "of the trainers' rendezvous"

    # Whoever comes first fills a place: the last to come is the spare.
    deployment.wait_until(lambda: any(map(deployment.is_spare, NODES)), said.read_text)
    spare = next(name for name in NODES if deployment.is_spare(name))
    cut_off = next(name for name in NODES if deployment.machine(name) == 1)
    hosts[cut_off].unplug()
    goes_on(5)
    hosts[cut_off].plug()
    deployment.restart_etcd()
    deployment.wait_until(lambda: deployment.is_spare(cut_off), said.read_text)
    hosts[spare].kill()
    goes_on(5)

    again = hosts["desk"].begin(*line, log=said)
    assert again.wait(240) == 0, said.read_text()
    assert deployment.final(TRAIN) == (ITERATIONS, baseline(TRAIN, ITERATIONS))
    # Silence, and a host whose every process is gone, are both found long before the lease ends.
    seen = [one.event for one in of_kind(deployment.events(), Detected)]
    assert [(one.agent, one.how) for one in seen] == [(cut_off, "unreached"), (spare, "unreached")]
    for node in nodes:
        if node.name != spare:
            # The shell that started it over ssh ends a moment after it.
            deployment.wait_until(partial(has_ended, node), node.processes)
            assert node.segments() == []
