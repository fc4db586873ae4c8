"""Who is let into a job by a real store: its secret, its certificates, its versions, its script."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_configs.plugins import VARIABLE
from castor_policy.agents import store_writes
from castor_policy.agents.admission import Refusal, refused_prefix, software_key
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.own_report import ReportWrite
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import plan_key
from castor_policy.job_options import TrafficOptions
from castor_policy.store import KeyValue, Put, Store, Txn
from castor_runtime.agent import admission
from castor_runtime.agent.admission import Admitted, admit, read_credentials
from castor_runtime.agent.options import AgentOptions
from castor_runtime.authority import Authority
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_runtime.transport import JobSecret, MutualTls

pytestmark = pytest.mark.long  # all of it starts real processes

SECRET = b"the secret of this job"
OTHER = b"the secret of another job"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    server = EmbeddedEtcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


class Job:
    """A job whose agents come one after the other, each with a folder of its own."""

    def __init__(self, etcd: EmbeddedEtcd, folder: Path, *, marked: bool = True) -> None:
        mark = JobSecret(SECRET).mark() if marked else ""
        self.url, self.folder = etcd.url, folder
        (folder / "train.py").write_text("import model\n")
        (folder / "model.py").write_text("VALUE = 1\n")
        self.spec = JobSpec(
            f"t{secrets.token_hex(4)}",
            2,
            1,
            "group",
            ((0, 1), (1, 0)),
            str(folder / "train.py"),
            credentials=mark,
        )

    def options(self, name: str, secret: bytes = SECRET, *, allow: bool = False) -> AgentOptions:
        file = self.folder / f"{name}.secret"
        file.write_bytes(secret + b"\n")
        return AgentOptions(
            name, self.spec.job, self.url, self.folder, secret=file, allow_changed_script=allow
        )

    def comes(self, options: AgentOptions) -> Admitted:
        async def come(store: Store) -> Admitted:
            return await admit(store, self.spec, options, read_credentials(options))

        return self.ask(come)

    def ask(self, what):
        async def asked():
            store = open_store(self.url)
            try:
                return await what(store)
            finally:
                await store.close()

        return asyncio.run(asked())

    def keys(self, prefix: str) -> list[KeyValue]:
        async def read(store: Store) -> list[KeyValue]:
            return (await store.get_prefix(prefix))[0]

        return self.ask(read)

    def refusals(self) -> dict[str, str]:
        found = [Refusal.from_json(k.value) for k in self.keys(refused_prefix(self.spec.job))]
        return {one.agent: one.reason for one in found}


@pytest.fixture
def job(etcd: EmbeddedEtcd, tmp_path: Path) -> Job:
    return Job(etcd, tmp_path)


def test_another_secret_is_told_to_its_operator_and_to_the_job(job: Job) -> None:
    job.comes(job.options("node-0"))
    wrong = job.options("spare-0", OTHER)
    with pytest.raises(InputError, match="is not the secret of this job") as refused:
        job.comes(wrong)
    assert str(wrong.secret) in str(refused.value)
    assert OTHER.decode() not in str(refused.value)
    assert job.refusals() == {"spare-0": str(refused.value)}
    for key in job.keys(f"/castor/{job.spec.job}/"):
        assert OTHER.hex() not in key.value
        assert SECRET.hex() not in key.value
    # The secret is copied again: the refusal is of the past.
    job.comes(job.options("spare-0"))

    async def claim(store: Store) -> None:
        lease = await store.grant(5)
        report = AgentReport("spare-0", "i1", True, "h:1")
        txn = store_writes.report(job.spec.job, ReportWrite(report, 0), lease)
        assert (await store.transact(txn)).succeeded

    job.ask(claim)
    assert job.refusals() == {}


def test_without_a_mark_of_the_launchers_the_first_agent_says_which_secret_it_is(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    job = Job(etcd, tmp_path, marked=False)
    job.comes(job.options("node-0"))
    job.comes(job.options("node-1"))
    with pytest.raises(InputError, match="is not the secret of this job"):
        job.comes(job.options("node-2", OTHER))


def test_a_report_is_believed_from_who_knows_the_secret_and_from_that_life_alone(job: Job) -> None:
    one, other = (job.comes(job.options(name)) for name in ("node-0", "node-1"))
    report = AgentReport("node-0", "i1", True, "h:1", proof=one.proof("i1", "h:1"))
    assert other.believes(report)
    assert other.believes(replace(report, generation=4))
    for changed in (
        replace(report, proof=""),
        replace(report, agent="node-1"),
        replace(report, incarnation="i2"),
        replace(report, address="h:2"),
    ):
        assert not other.believes(changed)
    stranger = replace(one, credentials=JobSecret(OTHER))
    assert not other.believes(replace(report, proof=stranger.proof("i1", "h:1")))
    elsewhere = replace(one, spec=replace(job.spec, job="another"))
    assert not other.believes(replace(report, proof=elsewhere.proof("i1", "h:1")))


def test_other_versions_are_refused_with_or_without_the_option(job: Job, monkeypatch) -> None:
    job.comes(job.options("node-0"))
    monkeypatch.setattr(admission, "_version", lambda _: "1.0")
    for allow in (False, True):
        with pytest.raises(InputError, match=r"node-1: torch 1.0 here, \S+ in the job: install"):
            job.comes(job.options("node-1", allow=allow))


def test_a_changed_script_is_refused_by_name_and_an_option_lets_it_in(job: Job) -> None:
    first = job.comes(job.options("node-0"))
    (job.folder / "model.py").write_text("VALUE = 2\n")
    with pytest.raises(
        InputError, match=r"node-1: train.py differs \(model.py: \w{8}… here, \w{8}… in the job\)"
    ):
        job.comes(job.options("node-1"))
    assert "train.py differs" in job.refusals()["node-1"]
    changed = job.comes(job.options("node-1", allow=True))
    assert changed.software.digest != first.software.digest

    # All machines have the changed one, and have trained with it: it is the job's by now.
    async def train(store: Store) -> None:
        plan = Plan(2, 1, "load", ("a", "b"), ("i", "i"), script=changed.software.digest)
        await store.transact(Txn((), (Put(plan_key(job.spec.job), plan.to_json()),)))

    job.ask(train)
    job.comes(job.options("node-2"))
    (job.folder / "model.py").write_text("VALUE = 1\n")
    with pytest.raises(InputError, match=r"train\.py differs"):
        job.comes(job.options("node-3"))


def test_a_scheme_of_ones_own_that_differs_is_refused_by_name(job: Job, monkeypatch) -> None:
    scheme, its_part = job.folder / "own.py", job.folder / "shares.py"
    scheme.write_text("import shares\ndef own(*_): ...\n")
    its_part.write_text("HALF = 2\n")
    monkeypatch.setenv(VARIABLE, f"schemes.own = {scheme}:own")
    job.spec = replace(job.spec, traffic=TrafficOptions(scheme="own"))
    first = job.comes(job.options("node-0"))
    assert set(first.software.plugins) == {"scheme own, own.py", "scheme own, shares.py"}
    its_part.write_text("HALF = 3\n")
    with pytest.raises(
        InputError, match=r"node-1: a plugin differs \(scheme own, shares.py: \w{8}… here, \w{8}…"
    ):
        job.comes(job.options("node-1"))
    assert "a plugin differs" in job.refusals()["node-1"]
    assert job.comes(job.options("node-1", allow=True)).software.digest != first.software.digest
    scheme.unlink()
    with pytest.raises(InputError, match=r"plugin own = .*own.py:own .* cannot be found"):
        job.comes(job.options("node-2"))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match=r"scheme own, own.py: not there here, \w{8}… in the job"):
        job.comes(job.options("node-2"))


def test_a_job_can_allow_changed_scripts_for_all(job: Job) -> None:
    job.comes(job.options("node-0"))
    (job.folder / "train.py").write_text("import model  # changed\n")
    job.spec = replace(job.spec, allow_changed_script=True)
    job.comes(job.options("node-1"))


def test_a_machine_without_the_script_is_refused(job: Job) -> None:
    job.comes(job.options("node-0"))
    (job.folder / "train.py").unlink()
    with pytest.raises(InputError, match="copy the script to the same path on every machine"):
        job.comes(job.options("node-1"))
    assert "node-1" in job.refusals()


def test_of_agents_that_come_at_once_one_says_what_the_job_runs(job: Job) -> None:
    async def come(store: Store) -> None:
        options = [job.options(f"node-{n}") for n in range(6)]
        await asyncio.gather(*(admit(store, job.spec, o, read_credentials(o)) for o in options))

    job.ask(come)
    assert len(job.keys(software_key(job.spec.job))) == 1


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_secret_that_is_none_is_a_sentence(job: Job, content: bytes) -> None:
    with pytest.raises(InputError, match="give at least 16 random ones"):
        read_credentials(job.options("node-0", content))


# ---- certificates --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, `ours` and `theirs`, and an agent's certificate of each."""
    folder = tmp_path_factory.mktemp("certificates")
    for ca in ("ours", "theirs"):
        authority = Authority.new(ca, days=2)
        authority.own().write(folder / f"{ca}.pem", folder / f"{ca}.key")
        agent = authority.issue(f"agent-{ca}", "127.0.0.1", days=2)
        agent.write(folder / f"agent-{ca}.pem", folder / f"agent-{ca}.key")
    return folder


def with_certificates(options: AgentOptions, folder: Path, ca: str, agent: str) -> AgentOptions:
    return replace(
        options,
        secret=None,
        tls_ca=folder / f"{ca}.pem",
        tls_certificate=folder / f"agent-{agent}.pem",
        tls_key=folder / f"agent-{agent}.key",
    )


def test_a_certificate_that_ones_own_authority_refuses_is_told_at_once(
    job: Job, certificates: Path
) -> None:
    fine = with_certificates(job.options("a"), certificates, "ours", "ours")
    assert isinstance(read_credentials(fine), MutualTls)
    with pytest.raises(InputError, match="is not accepted by the authority of --tls-ca"):
        read_credentials(with_certificates(job.options("a"), certificates, "ours", "theirs"))
    mixed = replace(fine, tls_key=certificates / "agent-theirs.key")
    with pytest.raises(InputError):
        read_credentials(mixed)
    with pytest.raises(InputError, match="cannot be read"):
        read_credentials(replace(fine, tls_ca=certificates / "none.pem"))


def test_agents_of_another_authority_and_with_a_secret_are_refused(
    job: Job, certificates: Path
) -> None:
    job.comes(with_certificates(job.options("a"), certificates, "ours", "ours"))
    job.comes(with_certificates(job.options("b"), certificates, "ours", "ours"))
    with pytest.raises(InputError, match="is not the authority of this job's agents"):
        job.comes(with_certificates(job.options("c"), certificates, "theirs", "theirs"))
    assert list(job.refusals()) == ["c"]


def test_where_agents_have_certificates_a_secret_is_of_no_use(
    etcd: EmbeddedEtcd, tmp_path: Path, certificates: Path
) -> None:
    job = Job(etcd, tmp_path, marked=False)
    job.comes(with_certificates(job.options("a"), certificates, "ours", "ours"))
    with pytest.raises(InputError, match="certificates"):
        job.comes(job.options("b"))
