"""The ports that an agent may listen at: how they are written, taken in turn, and run out."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_runtime.agent import rendezvous
from castor_runtime.ports import ANY_PORT, Ports, kernel_range
from castor_runtime.trainer import meeting
from castor_runtime.transport import JobSecret, PeerServer


@pytest.fixture
def three() -> Ports:
    """Three ports in a row that are free at one of the loopback's addresses."""
    first = next(
        first
        for first in range(21000, 30000, 3)
        if all(_free(port) for port in range(first, first + 3))
    )
    return Ports(first, first + 2)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("7000", "expected FIRST-LAST, such as 7000-7019, not '7000'"),
        ("7000:7019", "expected FIRST-LAST"),
        ("7019-7000", "expected ports from 1 to 65535"),
        ("0-10", "expected ports from 1 to 65535"),
        ("7000-70000", "expected ports from 1 to 65535"),
        ("7000-7000", "7000-7000 is one port; an agent needs 2"),
    ],
)
def test_what_is_no_range_for_an_agent_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Ports.parse(text)


def test_ports_are_taken_in_turn_until_all_are(three: Ports) -> None:
    assert Ports.parse(str(three)) == three
    assert Ports.parse("") == ANY_PORT
    with ExitStack() as stack:
        taken = []
        for _ in range(3):
            bound = stack.enter_context(three.bind("127.0.0.1", turn=2))
            bound.listen()
            taken.append(bound.getsockname()[1])
        assert taken == [three.last, three.first, three.first + 1]
        with pytest.raises(InputError, match=f"--ports: all of {three} are taken at 127.0.0.1"):
            three.bind("127.0.0.1")
    three.bind("127.0.0.1").close()  # free again at once, for the next life of an agent
    with pytest.raises(OSError, match="assign requested address"):
        three.bind("192.0.2.1")


def test_peers_and_the_rendezvous_keep_to_the_range(three: Ports, tmp_path: Path) -> None:
    async def ports() -> list[str]:
        server = PeerServer(
            "127.0.0.1",
            three,
            credentials=JobSecret(bytes(32)),
            run="ab" * 8,
            source=None,  # type: ignore[arg-type]  # nobody asks for a part
            status=dict,
        )
        async with server:
            own = three.of_rendezvous
            places = [rendezvous.choose("127.0.0.1", tmp_path, turn, own) for turn in (0, 1, 2)]
            return [server.address, *(meeting.environment(p)["MASTER_PORT"] for p in places)]

    server, *met = asyncio.run(ports())
    assert server == f"127.0.0.1:{three.first}"
    # Never the server's own, nor the last generation's.
    assert met == [str(three.first + 1), str(three.last), str(three.first + 1)]


def test_the_kernel_says_which_ports_gloo_gets() -> None:
    first, last = kernel_range().first, kernel_range().last
    with socket.socket() as unnamed:
        unnamed.bind(("127.0.0.1", 0))
        assert first <= unnamed.getsockname()[1] <= last
