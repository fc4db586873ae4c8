"""What of this host itself matters: its address, ports, memory, limits, clock and GPUs."""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from castor_configs.errors import InputError
from castor_runtime.agent.rendezvous import address_of, interface_of
from castor_runtime.arena import SHARED_MEMORY, Topology, available_bytes
from castor_runtime.arena.numa import SYSTEM, prefer_node, why_refused
from castor_runtime.doctor.finding import Finding, bad, good, note
from castor_runtime.ports import ANY_PORT, Ports, kernel_range

_GIB: Final = 1 << 30
_MOUNTS = Path("/proc/self/mounts")
_HUGE_PAGES_OF_SHARED_MEMORY = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_DOCKERS_DEFAULT: Final = 64 << 20
_TIME_ERROR: Final = 5
_NVIDIA_S: Final = 20.0


def address(listen: str, interface: str) -> tuple[Finding, str]:
    """Look at the address that others are to reach; return it, too, "" if there is none.

    Args:
        listen: as given by --listen.
        interface: as given by --interface; "": not.
    """
    what = "address"
    try:
        found = address_of(interface) if interface else socket.gethostbyname(listen)
    except (OSError, ValueError) as error:
        return bad(what, str(error), "name an interface that `ip -4 address` shows"), ""
    if ipaddress.ip_address(found).is_loopback:
        text = f"{found} is this host's own: no other host reaches it"
        return bad(what, text, "give --interface eth0, or --listen ADDRESS"), found
    if not (named := interface_of(found)):
        advice = "give an address that `ip -4 address` shows"
        return bad(what, f"{found} is on no interface of this host", advice), ""
    return good(what, f"{found} on {named}"), found


def ports(wanted: str, at: str) -> Finding:
    """Look whether an agent finds ports to listen at.

    Args:
        wanted: as given by --ports; "": any.
        at: the address; "": none is known.
    """
    what = "ports"
    try:
        given = Ports.parse(wanted)
        if at:
            given.bind(at).close()
    except InputError as error:
        return bad(what, error.message, "choose others, or end what holds them: ss -ltnp")
    except (OSError, ValueError) as error:
        return bad(what, str(error), "give --ports FIRST-LAST, such as 7000-7019")
    kernel = kernel_range()
    if given == ANY_PORT:
        text = f"any of the kernel's, {kernel}"
        return note(what, text, "where a firewall stands between, give --ports 7000-7019")
    if given.first <= kernel.last and kernel.first <= given.last:
        advice = "choose ports outside of it: an outgoing connection may hold one of these"
        return note(what, f"{given} lie in the kernel's range {kernel}", advice)
    return good(what, f"{given} for agent and rendezvous; gloo and NCCL use {kernel}")


def shared_memory(
    needed_bytes: int | None,
    folder: Path = SHARED_MEMORY,
    *,
    held_bytes: int = 0,
    memory_bytes: int | None = None,
) -> Finding:
    """Look whether checkpoints have room.

    Args:
        needed_bytes: by this host; None: not known.
        folder: where shared memory is.
        held_bytes: of that, what is there already.
        memory_bytes: that this host has left, or this container; None: it is looked up.
    """
    what = "shared memory"
    system = os.statvfs(folder)
    free, size = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    left = available_bytes() if memory_bytes is None else memory_bytes
    found = f"{_gib(free)} free of {_gib(size)}, {_gib(left)} of memory left"
    larger = "mount it larger: mount -o remount,size=SIZE /dev/shm; docker run --shm-size SIZE"
    if needed_bytes is not None:
        more = max(0, needed_bytes - held_bytes)
        held = f", {_gib(held_bytes)} of it here" if held_bytes else ""
        found += f"; checkpoints take {_gib(needed_bytes)}{held}"
        if free < more:
            return bad(what, found, larger)
        if left < more:
            advice = "what lies there counts as memory: give host or container more, or train on"
            return bad(what, found, f"{advice} more machines")
    if size <= _DOCKERS_DEFAULT:
        return bad(what, f"{found}: a container's default", larger)
    if needed_bytes is None:
        formula = (
            "2 · copies (one less with --memory saving) · 12 bytes · parameters / machines: "
            "compare it, --shared-memory SIZE"
        )
        return note(what, found, formula)
    return good(what, found)


def huge_pages(
    needed_bytes: int | None,
    folder: Path = SHARED_MEMORY,
    mounts: Path = _MOUNTS,
    kernel: Path = _HUGE_PAGES_OF_SHARED_MEMORY,
) -> Finding:
    """Look whether checkpoint memory may lie in huge pages: fewer of them are quicker to pin.

    Args:
        needed_bytes: by this host; None: not known.
        folder: where shared memory is.
        mounts: what the kernel says of file systems.
        kernel: and of huge pages in shared memory; it may not be there.
    """
    what = "huge pages"
    lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    options = next((line[3] for line in reversed(lines) if line[1] == str(folder)), "")
    said = next((one[5:] for one in options.split(",") if one.startswith("huge=")), "never")
    try:
        forced = kernel.read_text(encoding="utf-8")
    except OSError:
        return note(what, "this kernel has none for shared memory", "nothing is wrong without them")
    if "[force]" in forced or ("[deny]" not in forced and said != "never"):
        return good(what, f"{folder} may use them (huge={said})")
    pages = "" if needed_bytes is None else f": {needed_bytes // 4096:,} pages of 4 KiB"
    advice = f"mount -o remount,huge=advise {folder}; Castor asks for them, nothing else has to"
    return note(what, f"none in {folder}{pages}", advice)


def numa(root: Path = SYSTEM, environment: Mapping[str, str] = os.environ) -> Finding:
    """Look whether checkpoint memory will lie on the NUMA node of the GPU that uses it.

    Args:
        root: under which what the kernel and the driver say is; see `Topology`.
        environment: of trainers, which may say which GPUs they use.
    """
    what = "NUMA"
    topology = Topology.read(root)
    if len(topology.nodes) < 2:
        return good(what, "one node: all memory is as near")
    found, gpu_nodes = f"{len(topology.nodes)} nodes", topology.gpu_nodes(environment)
    if not gpu_nodes:
        return good(
            what, f"{found}; no GPU of NVIDIA's is used: memory is where the kernel puts it"
        )
    at: dict[int | None, list[str]] = {}
    for gpu, node in enumerate(gpu_nodes):
        at.setdefault(node, []).append(str(gpu))
    known = {node: ", ".join(of) for node, of in at.items() if node is not None}
    for node, of in sorted(known.items()):
        found += f"; node {node} has GPUs {of}"
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:
                prefer_node(page, node)
        except OSError as error:
            advice = "checkpoint memory will lie where the kernel puts it, and copies cross sockets"
            return note(what, f"{found}; refused: {why_refused(node, error)}", advice)
    if None in at:
        advice = "their checkpoint memory is not placed; a virtual machine's host may tell it more"
        return note(what, f"{found}; not known of GPUs {', '.join(at[None])}", advice)
    return good(what, f"{found}: checkpoint memory will be there")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"


def locked_memory() -> Finding:
    """Look at the limit of memory that may be locked: of RDMA, not of what CUDA pins."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return good("locked memory", "unlimited")
    advice = "with InfiniBand or EFA set it unlimited: ulimit -l, LimitMEMLOCK= of systemd"
    return note("locked memory", f"limited to {limit >> 20} MiB", advice)


def clock(state: Callable[[], int] | None = None) -> Finding:
    """Look whether something sets the clock.

    Args:
        state: returns how the kernel knows it, as adjtimex(2) does; None: the kernel is asked.
    """
    if (state or _adjtimex)() in (_TIME_ERROR, -1):
        advice = "have chrony, ntpd or systemd-timesyncd set it: logs are compared by it"
        return note("clock", "the kernel does not know of anybody who sets it", advice)
    return good("clock", "is set by somebody")


def _adjtimex() -> int:
    # Mode 0 at the start of the structure changes nothing.
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))


def gpus(trainers: int | None) -> Finding:
    """Look whether there are as many GPUs as trainers.

    Args:
        trainers: on this host; None: not known.
    """
    what = "GPUs"
    program = shutil.which("nvidia-smi")
    if program is None:
        return note(what, "none: there is no nvidia-smi", "trainers compute on the CPU, over gloo")
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own program
            [program, "-L"], capture_output=True, text=True, timeout=_NVIDIA_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return bad(what, f"nvidia-smi: {error}", "see to the driver")
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())
        return bad(what, f"nvidia-smi ended with code {done.returncode}: {said}", "see to it")
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    if trainers is not None and count < trainers:
        advice = "start fewer trainers, or find out what became of the others: dmesg"
        return bad(what, f"{count} for {trainers} trainers", advice)
    return good(what, str(count))
