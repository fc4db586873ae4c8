"""Agents' certificates are compared with whom they name, by both sides, in a sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from castor_configs.errors import InputError
from castor_runtime.agent.admission import credentials_of
from castor_runtime.authority import Authority
from castor_runtime.transport import (
    MutualTls,
    PartMissingError,
    PeerClient,
    PeerReader,
    PeerRefusedError,
    PeerServer,
)
from castor_runtime.transport.peer_certificates import is_for

RUN = "0123456789abcdef"
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


class Nothing:
    def open(self, rank: int, iteration: int) -> Any:
        raise PartMissingError(f"no part of rank {rank}, iteration {iteration}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    authority = Authority.new("ours", days=2)
    authority.own().write(made / "ca.pem", made / "ca.key")
    hosts = {
        "here": ("node-0", HERE),
        "elsewhere": ("node-1", ELSEWHERE),
        "name": ("node-2",),
    }
    for name, names in hosts.items():
        authority.issue(*names, days=2).write(made / f"{name}.pem", made / f"{name}.key")
    authority.issue(HERE, days=0).write(made / "expired.pem", made / "expired.key")
    return made


def tls(folder: Path, name: str) -> MutualTls:
    return MutualTls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def pinged(server: MutualTls, client: MutualTls, own: str = "", at: str = HERE) -> dict[str, Any]:
    async def ping() -> dict[str, Any]:
        made = PeerServer(
            at, credentials=server, run=RUN, source=Nothing(), status=lambda: {"fine": True}
        )
        async with made:
            return await PeerClient(client, RUN, own=own).ping(made.address, 2)

    return asyncio.run(ping())


def test_hosts_that_are_whom_their_certificates_name_talk(folder: Path) -> None:
    here, elsewhere = tls(folder, "here"), tls(folder, "elsewhere")
    assert pinged(here, here) == {"fine": True}
    # An agent comes from the address that it listens at, and its certificate names that one.
    assert pinged(here, elsewhere, own=ELSEWHERE) == {"fine": True}
    assert pinged(elsewhere, here, own=HERE, at=ELSEWHERE) == {"fine": True}


@pytest.mark.parametrize(
    ("server", "client", "named"),
    [
        ("elsewhere", "here", "its certificate is not for 127.0.0.1, where it was reached"),
        ("name", "here", "its certificate is not for 127.0.0.1, where it was reached"),
        (
            "here",
            "elsewhere",
            "it refuses this host: its certificate is for node-1, 127.0.0.2 and not for 127.0.0.1",
        ),
        ("here", "name", "its certificate is for node-2 and not for 127.0.0.1"),
        ("expired", "here", "its certificate has expired"),
        ("here", "expired", "it says that this side's certificate has expired"),
    ],
)
def test_a_certificate_for_another_or_of_the_past_is_refused_in_a_sentence(
    folder: Path, server: str, client: str, named: str
) -> None:
    with pytest.raises(PeerRefusedError) as caught:
        pinged(tls(folder, server), tls(folder, client))
    said = str(caught.value)
    assert named in said
    assert said.startswith("127.0.0.1:")
    assert "\n" not in said


def test_who_reads_logs_is_compared_too(folder: Path) -> None:
    async def read() -> None:
        made = PeerServer(
            HERE, credentials=tls(folder, "here"), run=RUN, source=Nothing(), status=dict
        )
        async with made:
            reader = PeerReader(made.address, tls(folder, "elsewhere"), RUN)
            with pytest.raises(PeerRefusedError, match="it refuses this host"):
                await asyncio.to_thread(reader.listing)

    asyncio.run(read())


def test_an_agent_whose_certificate_does_not_name_its_address_does_not_start(
    folder: Path, tmp_path: Path
) -> None:
    def given(name: str, listen: str) -> Any:
        files = folder / f"{name}.pem", folder / f"{name}.key"
        return credentials_of(None, folder / "ca.pem", *files, listen=listen)

    assert given("here", HERE) == tls(folder, "here")
    assert given("here", "localhost") == tls(folder, "here")
    with pytest.raises(InputError) as caught:
        given("elsewhere", HERE)
    assert "is for node-1, 127.0.0.2 and not for 127.0.0.1, the address of --listen" in str(
        caught.value
    )
    with pytest.raises(InputError, match="has expired"):
        given("expired", HERE)
    with pytest.raises(InputError, match="cannot be read"):
        given("missing", HERE)
    # Who only asks listens nowhere.
    assert given("elsewhere", "") == tls(folder, "elsewhere")


@pytest.mark.parametrize(
    ("name", "address", "fits"),
    [
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "::ffff:10.0.0.7", True),
        ("FD00:0:0:0:0:0:0:7", "fd00::7", True),
        ("FE80:0:0:0:0:0:0:7", "fe80::7%eth0", True),
        ("10.0.0.70", "10.0.0.7", False),
        ("node-0", "10.0.0.7", False),
    ],
)
def test_addresses_are_compared_and_not_their_texts(name: str, address: str, fits: bool) -> None:
    assert is_for(["other", name], address) is fits
