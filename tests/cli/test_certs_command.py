"""`castor certs`: who has a certificate of the authority is let in under the names in it."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError


def certs(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["certs", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        certs(*arguments)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certificates"
    said = certs("init", "etcd.lab,10.0.0.1", "node-0,10.0.0.10", "--out", str(made))
    assert "for node-0 and 10.0.0.10" in said
    assert "--tls-ca ca.pem" in said
    return made


def context(folder: Path, host: str, *, server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(folder / "ca.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / f"{host}.pem", folder / f"{host}.key")
    return made


def shake_hands(folder: Path, server: str, client: str, name: str) -> None:
    """Have a client of one host connect to a server of another that it knows by `name`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        context(folder, client, server=False).wrap_bio(to_client, to_server, server_hostname=name),
        context(folder, server, server=True).wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(end.getpeercert() for end in ends)


@pytest.mark.parametrize("name", ["etcd.lab", "10.0.0.1"])
def test_hosts_of_one_authority_know_each_other_by_each_name(folder: Path, name: str) -> None:
    shake_hands(folder, "etcd.lab", "node-0", name)


@pytest.mark.parametrize("name", ["node-0", "10.0.0.2"])
def test_nobody_passes_for_another_host(folder: Path, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"ismatch"):
        shake_hands(folder, "etcd.lab", "node-0", name)


def test_a_host_that_is_added_later_is_known(folder: Path) -> None:
    certs("add", "node-1", "--out", str(folder))
    shake_hands(folder, "node-1", "etcd.lab", "node-1")


def test_keys_are_their_owners_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = sorted(folder.glob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "etcd.lab.key", "node-0.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_what_is_there_is_never_written_over(folder: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert "has an authority already" in refused("init", "node-1", "--out", str(folder))
    assert "node-0.pem is there already" in refused("add", "node-1", "node-0", "--out", str(folder))
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert "no authority there" in refused("add", "node-1", "--out", str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("hosts", "why"),
    [
        (["node 0"], "'node 0' is no host's name"),
        (["../x"], "'../x' is no host's name"),
        (["node-0,"], "'' is no host's name"),
        (["node-0", "node-0"], "node-0 is named twice"),
        (["ca"], "ca.pem is the authority's"),
    ],
)
def test_a_host_that_is_none_leaves_nothing_behind(
    tmp_path: Path, hosts: list[str], why: str
) -> None:
    assert why in refused("init", *hosts, "--out", str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
