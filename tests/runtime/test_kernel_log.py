"""What the kernel says of a process's end: its own words, and a process that it really kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_runtime.agent.kernel_log import KernelLog, KernelWord
from tests.memory_cgroup import memory_cgroup, reason_without

KILLED = "Memory cgroup out of memory: Killed process 8397 (python3) total-vm:221384kB"
XID_OF_ONE = "NVRM: Xid (PCI:0000:3b:00): 31, pid=8397, name=python3, Ch 00000008, MMU Fault"
XID_OF_OLD_DRIVERS = "NVRM: Xid (PCI:0000:3b:00): 31, pid='8397', name=python3"
XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
MEMORY = "mce: [Hardware Error]: Machine check events logged"

Tell = Callable[[str, float], None]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[KernelLog, Tell]]:
    """One to whose file records are written, as long ago as is said."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    made = KernelLog(path, has_hosts_numbers=True)
    with path.open("wb", buffering=0) as file:

        def tell(text: str, ago_s: float) -> None:
            since_boot_us = int((time.clock_gettime(time.CLOCK_MONOTONIC) - ago_s) * 1e6)
            file.write(f"3,9672,{since_boot_us},-;{text}\n SUBSYSTEM=pci\n".encode())
            made.why_ended(0)  # a pipe would give two records at one read

        yield made, tell
    made.close()


@pytest.mark.parametrize("said", [KILLED, XID_OF_ONE, XID_OF_OLD_DRIVERS])
def test_what_names_a_process_explains_its_end_alone_however_late(
    said: str, log: tuple[KernelLog, Tell]
) -> None:
    kernel, tell = log
    tell(said, 600.0)
    assert kernel.why_ended(8397) == KernelWord(said, of_it=True)
    assert kernel.why_ended(839) is None


@pytest.mark.parametrize("said", [XID, MEMORY])
def test_what_names_nobody_explains_an_end_soon_after_it(
    said: str, log: tuple[KernelLog, Tell]
) -> None:
    kernel, tell = log
    tell(said, 600.0)
    assert kernel.why_ended(1) is None
    tell(said, 1.0)
    assert kernel.why_ended(1) == KernelWord(said, of_it=False)


def test_its_own_comes_before_nobodys_and_the_newest_first(log: tuple[KernelLog, Tell]) -> None:
    kernel, tell = log
    tell(KILLED, 3.0)
    tell(XID_OF_ONE, 2.0)
    tell(XID, 1.0)
    tell("usb 1-1: new high-speed USB device", 0.0)
    assert kernel.why_ended(8397) == KernelWord(XID_OF_ONE, of_it=True)
    assert kernel.why_ended(1) == KernelWord(XID, of_it=False)


def test_in_a_container_the_hosts_numbers_are_not_taken_for_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    kernel = KernelLog(tmp_path / "kmsg", has_hosts_numbers=False)
    with (tmp_path / "kmsg").open("wb", buffering=0) as file:
        file.write(f"3,1,{time.monotonic_ns() // 1000},-;{KILLED}\n".encode())
        assert kernel.why_ended(8397) is None
    kernel.close()


def test_where_the_log_cannot_be_read_nothing_is_said(tmp_path: Path) -> None:
    kernel = KernelLog(tmp_path / "none")
    assert kernel.why_ended(1) is None
    kernel.close()


def test_a_process_that_the_kernel_kills_for_its_memory_is_told_of() -> None:
    if why := reason_without():
        pytest.skip(why)
    kernel = KernelLog()
    takes = "import sys; open(sys.argv[1], 'w').write(str(__import__('os').getpid())); "
    with memory_cgroup(50 << 20) as members:
        taking = [sys.executable, "-c", takes + "bytearray(400 << 20)", str(members)]
        process = subprocess.Popen(taking)
        assert process.wait(60) == -signal.SIGKILL
    told = kernel.why_ended(process.pid)
    kernel.close()
    assert told is not None
    assert told.of_it
    assert f"ut of memory: Killed process {process.pid} (" in told.text
