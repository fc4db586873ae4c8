"""Hosts that share nothing: several sets of them at once, and what a crash leaves of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from castor_lab.emulated_cluster.namespaces import FOLDER
from castor_lab.separate_hosts.hosts import SeparateHosts

CRASHES = """
import sys, time
from castor_lab.separate_hosts.hosts import SeparateHosts
with SeparateHosts(["a"]) as hosts:
    print(hosts["a"].namespace, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _programs(needs: Callable[..., None]) -> None:
    needs("ip", "unshare", "nsenter", "mount", "ss", "hostname", root=True)


def test_two_sets_have_the_same_names_and_addresses_and_do_not_meet() -> None:
    with SeparateHosts(["a", "b"]) as one:
        door = (one["b"].address, 7000)
        one["b"].begin(sys.executable, "-m", "http.server", "7000", "--bind", door[0])
        give_up_s = time.monotonic() + 60
        while door not in one["b"].listens():
            assert time.monotonic() < give_up_s
        to_door = ("bash", "-c", ": < /dev/tcp/{}/{}".format(*door))
        with SeparateHosts(["a", "b"]) as other:
            assert one["a"].address == other["a"].address
            assert other["a"].run(*to_door, check=False).returncode != 0
            one["a"].path("/mnt/mine").touch()
            assert not other["a"].path("/mnt/mine").exists()
        # The end of one is none of the other's.
        assert one["a"].path("/mnt/mine").exists()
        one["a"].run(*to_door)


def test_what_a_crash_left_goes_with_the_next_start() -> None:
    with subprocess.Popen([sys.executable, "-c", CRASHES], stdout=subprocess.PIPE) as crashes:
        assert crashes.stdout is not None
        namespace = crashes.stdout.readline().decode().strip()
        assert (FOLDER / namespace).exists()
        os.kill(crashes.pid, signal.SIGKILL)
    assert (FOLDER / namespace).exists()
    with SeparateHosts(["a"]):
        assert not (FOLDER / namespace).exists()
