"""A link tells the end of a life at once, silence within its time, and nothing of one that is slow.

The other side is a process with a real server: killed, stopped, replaced; or on a host of its own,
whose cable is pulled.
"""

from __future__ import annotations

import os
import queue
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from castor_lab.faults.machines import suspend
from castor_lab.separate_hosts.hosts import SeparateHosts
from castor_runtime.transport import PeerClient, PeerLink

PROGRAM = str(Path(__file__).with_name("linked_program.py"))
_PROGRAM = runpy.run_path(PROGRAM)
RUN, SECRET = _PROGRAM["RUN"], _PROGRAM["SECRET"]
HOUR_S = 3600.0
"""Within so long nothing is lost by silence: what is told then was told by its host."""


class Linked:
    """One server's process, and a link to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.told: queue.Queue[bool] = queue.Queue()

    def serve(self, life: str = "one", ports: str = "") -> subprocess.Popen[str]:
        line = [sys.executable, PROGRAM, "127.0.0.1", ports, life]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, self.process)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        return self.process

    def link(self, within_s: float) -> PeerLink:
        made = PeerClient(SECRET, RUN).link(self.address, "one", within_s, self.told.put)
        self._stack.callback(made.end)
        made.start()
        return made

    def reached(self) -> bool:
        """Return what the link tells next."""
        return self.told.get(timeout=60)

    def is_quiet(self, for_s: float) -> bool:
        time.sleep(for_s)
        return self.told.empty()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def linked() -> Iterator[Linked]:
    with ExitStack() as stack:
        yield Linked(stack)


def connections(port: str) -> int:
    """Return how many connections stand to a port of this host."""
    (local, established) = (f"{int(port):04X}", "01")
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        fields[2].endswith(f":{local}") and fields[3] == established
        for fields in (line.split() for line in lines)
    )


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def stands(linked: Linked) -> bool:
    return connections(linked.address.rpartition(":")[2]) == 1


def test_a_process_that_is_killed_is_lost_though_its_time_is_not_over(linked: Linked) -> None:
    process = linked.serve()
    linked.link(HOUR_S)
    wait_until(lambda: stands(linked))
    process.kill()
    assert not linked.reached()


def test_who_is_stopped_is_there_and_who_is_killed_then_is_not(linked: Linked) -> None:
    process = linked.serve()
    linked.link(0.4)
    wait_until(lambda: stands(linked))
    suspend(process.pid)
    assert linked.is_quiet(3.0), "its kernel still answers"
    os.kill(process.pid, signal.SIGKILL)
    assert not linked.reached()


def test_a_link_that_begins_while_the_other_side_is_stopped_waits_for_it(linked: Linked) -> None:
    process = linked.serve()
    suspend(process.pid)
    linked.link(0.4)
    assert linked.is_quiet(3.0)
    os.kill(process.pid, signal.SIGCONT)
    assert linked.is_quiet(0.5)
    process.kill()
    assert not linked.reached()


def test_another_life_at_the_same_port_is_not_the_one_that_was_lost(linked: Linked) -> None:
    first = linked.serve()
    port = int(linked.address.rpartition(":")[2])
    ports = f"{port}-{port + 1}"
    linked.link(HOUR_S)
    wait_until(lambda: stands(linked))
    _end(first)
    second = linked.serve("two", ports=ports)
    assert not linked.reached()
    assert linked.is_quiet(1.2), "it tries every half second"
    _end(second)
    linked.serve("one", ports=ports)
    assert linked.reached()


def test_nothing_is_told_once_it_is_ended(linked: Linked) -> None:
    process = linked.serve()
    link = linked.link(0.4)
    wait_until(lambda: stands(linked))
    link.end()
    process.kill()
    assert linked.is_quiet(1.0)


WATCHER = """
import sys, time
from linked_program import RUN, SECRET
from castor_runtime.transport import PeerClient
def tell(reached):
    print("found" if reached else "lost", flush=True)
link = PeerClient(SECRET, RUN).link(sys.argv[1], "one", 0.6, tell)
link.start()
sys.stdin.read()
"""


@pytest.mark.long
def test_a_cable_that_is_pulled_is_told_in_time_and_one_that_is_plugged_in_again(
    needs: Callable[..., None],
) -> None:
    needs("ip", "unshare", "nsenter", "mount", root=True)
    with SeparateHosts(["here", "there"]) as hosts, ExitStack() as stack:
        here, there = hosts["here"], hosts["there"]
        environment = os.environ | {"PYTHONPATH": str(Path(PROGRAM).parent)}

        def begin(host: str, *words: str) -> subprocess.Popen[str]:
            line = hosts[host].command(sys.executable, *words)
            begun = subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.callback(_end, begun)
            return begun

        server = begin("there", PROGRAM, there.address, "", "one")
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        watcher = begin("here", "-c", WATCHER, address)
        assert watcher.stdout is not None
        port = int(address.rpartition(":")[2])

        def linked() -> bool:
            listed = here.run("ss", "-Htn", "state", "established", f"dport = {port}").stdout
            return bool(listed.strip())

        wait_until(linked)
        there.unplug()
        assert watcher.stdout.readline() == "lost\n"
        there.plug()
        assert watcher.stdout.readline() == "found\n"
