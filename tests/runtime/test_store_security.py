"""A store that does not let everybody in: etcd with TLS, users and tokens that end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from castor_policy.store import Put, StoreRefusedError, StoreUnavailableError, Txn
from castor_runtime.authority import Authority
from castor_runtime.doctor.finding import Health
from castor_runtime.doctor.store import health
from castor_runtime.store_address import PASSWORD_VARIABLE, parse_store
from castor_runtime.stores import EmbeddedEtcd, EtcdStore, open_store
from castor_runtime.stores.certificates import Certificates
from castor_runtime.stores.embedded import _listens
from castor_runtime.stores.versions import etcd_program

pytestmark = pytest.mark.long  # together, not one by one

HOST = "127.0.0.1"
TOKEN_S = 1
PASSWORD = "opens, sesame"
Answer = TypeVar("Answer")


class GuardedEtcd(EmbeddedEtcd):
    """etcd as a cluster's operator runs it: TLS, tokens that end soon, no certificate asked for."""

    def _arguments(self, port: int) -> Iterator[str]:
        for argument in super()._arguments(port):
            if "client-cert-auth" not in argument and "trusted-ca" not in argument:
                yield argument
        yield f"--auth-token-ttl={TOKEN_S}"


class PlainEtcd(EmbeddedEtcd):
    """etcd that encrypts nothing."""

    def _arguments(self, port: int) -> Iterator[str]:
        for argument in super()._arguments(port):
            if not any(word in argument for word in ("cert", "trusted-ca", "key-file")):
                yield argument.replace("https://", "http://")

    def _answers(self, pid: int, port: int) -> bool:
        return _listens(pid, port)


@dataclass(frozen=True)
class Guarded:
    """A running store and what it takes to be let in."""

    etcd: EmbeddedEtcd
    folder: Path

    @property
    def where(self) -> str:
        host, port = self.etcd.endpoint
        return f"{host}:{port}"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def url(self, user: str = "", **options: Path) -> str:
        query = "&".join(f"{key.replace('_', '-')}={file}" for key, file in options.items())
        return f"etcds://{f'{user}@' if user else ''}{self.where}?{query}"

    def ctl(self, *arguments: str) -> None:
        files = Certificates(self.certificates)
        certificate, key = map(str, files.client)
        tls = [f"--cacert={files.ca}", f"--cert={certificate}", f"--key={key}"]
        program = etcd_program().with_name("etcdctl")
        subprocess.run(
            [str(program), f"--endpoints=https://{self.where}", *tls, *arguments],
            check=True,
            capture_output=True,
            env=os.environ | {"ETCDCTL_API": "3"},
        )


@pytest.fixture(scope="module")
def asks_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("mutual")
    etcd = EmbeddedEtcd(folder, host=HOST)
    etcd.start()
    yield Guarded(etcd, folder)
    etcd.close()


@pytest.fixture(scope="module")
def asks_passwords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("passwords")
    etcd = GuardedEtcd(folder, host=HOST)
    etcd.start()
    guarded = Guarded(etcd, folder)
    for user, role in (("root", "root"), ("castor", "castor"), ("guest", "guest")):
        if role != "root":
            guarded.ctl("role", "add", role)
        guarded.ctl("user", "add", f"{user}:{PASSWORD}")
        guarded.ctl("user", "grant-role", user, role)
    guarded.ctl("role", "grant-permission", "castor", "readwrite", "/castor/", "--prefix")
    guarded.ctl("auth", "enable")
    yield guarded
    etcd.close()


def asked(url: str, ask: Callable[[EtcdStore], Awaitable[Answer]]) -> Answer:
    async def story() -> Answer:
        store = open_store(url)
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(asyncio.wait_for(story(), 60))


async def read(store: EtcdStore) -> int:
    return (await store.get_prefix("/castor/job/"))[1]


def refused(url: str) -> str:
    with pytest.raises(StoreRefusedError) as caught:
        asked(url, read)
    return str(caught.value)


# ---- TLS ---------------------------------------------------------------------------------------


def test_who_has_a_certificate_is_let_in(asks_certificates: Guarded) -> None:
    folder = asks_certificates.certificates
    assert asked(asks_certificates.url(certificates=folder), read) > 0
    mine = {"certificate": folder / "client.pem", "key": folder / "client.key"}
    assert asked(asks_certificates.url(ca=folder / "ca.pem", **mine), read) > 0


def test_each_reason_that_tls_fails_for_is_told_in_a_sentence(
    asks_certificates: Guarded, tmp_path: Path
) -> None:
    ca = asks_certificates.certificates / "ca.pem"
    stranger = Authority.new("somebody else")
    (tmp_path / "ca.pem").write_bytes(stranger.own().certificate)
    foreign = {"certificate": tmp_path / "a.pem", "key": tmp_path / "a.key"}
    stranger.issue("node-0").write(*foreign.values())
    assert "asks for a certificate" in refused(asks_certificates.url(ca=ca))
    assert "certificate" in refused(asks_certificates.url(ca=ca, **foreign))
    unknown = refused(asks_certificates.url(ca=tmp_path / "ca.pem", **foreign))
    assert "is not who it should be" in unknown
    assert "speaks TLS: write etcds://" in refused(f"etcd://{asks_certificates.where}")


def test_a_certificate_that_has_expired_or_is_of_another_host_is_told(tmp_path: Path) -> None:
    for days, host, why in ((0, HOST, "expired"), (1, "etcd.lab", "IP address mismatch")):
        folder = tmp_path / why.replace(" ", "-")
        etcd = _started_with(folder, host, days)
        try:
            ca = folder / "certificates" / "ca.pem"
            said = refused(Guarded(etcd, folder).url(ca=ca))
            assert why in said, said
        finally:
            etcd.close()


class UnsoundEtcd(GuardedEtcd):
    """One that nobody should talk to: that it listens is all that it is asked for."""

    def _answers(self, pid: int, port: int) -> bool:
        return _listens(pid, port)


def _started_with(folder: Path, host: str, days: int) -> EmbeddedEtcd:
    files = Certificates(folder / "certificates")
    files.make(HOST)
    authority = Authority.new("castor store")
    files.ca.write_bytes(authority.own().certificate)
    for file in files.server:
        file.unlink()
    authority.issue(host, days=days).write(*files.server)
    etcd = UnsoundEtcd(folder, host=HOST)
    etcd.start()
    return etcd


def test_a_store_without_tls_is_told_from_one_that_is_down(tmp_path: Path) -> None:
    etcd = PlainEtcd(tmp_path, host=HOST)
    etcd.start()
    guarded = Guarded(etcd, tmp_path)
    try:
        assert asked(f"etcd://{guarded.where}", read) > 0
        said = refused(guarded.url(certificates=guarded.certificates))
        assert "speaks no TLS: write etcd://" in said
    finally:
        etcd.close()
    with pytest.raises(StoreUnavailableError) as caught:
        asked(guarded.url(certificates=guarded.certificates), read)
    assert not isinstance(caught.value, StoreRefusedError)


def test_a_name_that_nobody_knows_is_told(asks_certificates: Guarded) -> None:
    _, port = asks_certificates.etcd.endpoint
    assert "cannot be found" in refused(f"etcd://no-such-host.invalid:{port}")


# ---- users -------------------------------------------------------------------------------------


@pytest.fixture
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)


@pytest.mark.usefixtures("_password")
def test_a_user_with_its_password_works_on_when_its_token_has_ended(
    asks_passwords: Guarded,
) -> None:
    async def work(store: EtcdStore) -> list[str | None]:
        lease = await store.grant(10)
        made = await store.transact(Txn((), (Put("/castor/job/a", "1", lease),)))
        async with aclosing(store.watch("/castor/job/", made.revision)) as watch:
            seen = [event.value for event in await anext(watch)]
            await asyncio.sleep(TOKEN_S + 1.5)
            assert await store.keep_alive(lease) == 10
            await asyncio.sleep(TOKEN_S + 1.5)
            # A transaction, which is never sent twice for want of an answer.
            await store.transact(Txn((), (Put("/castor/job/a", "2", lease),)))
            seen += [event.value for event in await anext(watch)]
        await asyncio.sleep(TOKEN_S + 1.5)
        async with aclosing(store.watch("/castor/job/", made.revision)) as again:
            seen += [event.value for event in await anext(again)]
        await store.revoke(lease)
        return seen

    url = asks_passwords.url("castor", ca=asks_passwords.certificates / "ca.pem")
    assert asked(url, work)[:2] == ["1", "2"]
    assert asked(url, lambda store: store.state())["alarms"] == []
    assert asked(url, health).health != Health.BAD  # `castor doctor`


def test_who_may_not_enter_is_told_why(
    asks_passwords: Guarded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = asks_passwords.certificates / "ca.pem"
    assert "asks for a user: write USER@HOST:PORT" in refused(asks_passwords.url(ca=ca))
    monkeypatch.setenv(PASSWORD_VARIABLE, "a guess")
    assert "does not take the password of 'castor'" in refused(asks_passwords.url("castor", ca=ca))
    assert "does not take the password of 'nobody'" in refused(asks_passwords.url("nobody", ca=ca))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    guest = refused(asks_passwords.url("guest", ca=ca, password_file=tmp_path / "password"))
    assert "lets 'guest' not read and write keys under /castor/: grant" in guest


@pytest.mark.usefixtures("_password")
def test_a_user_whom_the_store_does_not_know_as_it_knows_none(asks_certificates: Guarded) -> None:
    folder = asks_certificates.certificates
    said = refused(asks_certificates.url("castor", certificates=folder))
    assert "asks nobody for a password: leave the user 'castor' out" in said


# ---- how it is written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("etcd://castor:secret@a:1", "can be read by everybody who lists processes"),
        ("etcd://castor@a:1", f"needs a password: set {PASSWORD_VARIABLE}"),
        ("etcd://castor@a:1?password-file=/no/such/file", "cannot read the password"),
        ("etcds://a:1?ca=/no/such/ca.pem", "cannot read /no/such/ca.pem"),
        ("etcds://a:1?certificate=/c.pem", "certificate=FILE and key=FILE go together"),
        ("etcds://a:1?cert=/c.pem", "unknown in a store's address: cert"),
        ("etcd://a:1?ca=/ca.pem", "write a store as"),
        ("etcds://a:1?ca", "write a store as"),
        ("etcd://a:0", "write a store as"),
        ("etcd://a:65536", "write a store as"),
    ],
)
def test_what_is_wrong_in_an_address_is_told(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_store(url, {})
    assert "secret" not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    address = parse_store("etcd://castor@a:1,b:2", {PASSWORD_VARIABLE: PASSWORD})
    assert address.password == PASSWORD
    assert address.endpoints == (("a", 1), ("b", 2))
    assert PASSWORD not in repr(address)


# ---- who starts something ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "agent"])
def test_a_command_ends_at_once_with_one_sentence(
    asks_passwords: Guarded, tmp_path: Path, command: str
) -> None:
    (tmp_path / "secret").write_bytes(b"sixteen bytes or more")
    url = asks_passwords.url("castor", ca=asks_passwords.certificates / "ca.pem")
    own = ["--secret", "secret"] if command == "agent" else []
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("castor")),
            command,
            "--store",
            url,
            "--job",
            "j",
            *own,
        ],
        cwd=tmp_path,
        env=os.environ | {PASSWORD_VARIABLE: "a guess"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "does not take the password of 'castor'" in done.stderr
