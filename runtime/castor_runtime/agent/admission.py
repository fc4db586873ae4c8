"""An agent's first steps in its job's store: may it take part? It claims its name only after that.

What is compared, and in which words, is `castor_policy.agents.admission`'s. Whoever is refused
tells its own operator, and leaves word in the store for `castor status`.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from castor_configs.errors import InputError
from castor_configs.plugins import source_of
from castor_configs.schemes import plugin_of
from castor_policy.agents import store_writes
from castor_policy.agents.admission import (
    Refusal,
    Software,
    credentials_key,
    other_script,
    other_versions,
    script_key,
    software_key,
)
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import job_prefix, plan_key
from castor_policy.store import Store, StoreUnavailableError
from castor_policy.version import __version__
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.script_files import ScriptFiles, held, read_script
from castor_runtime.transport import Credentials, JobSecret, MutualTls
from castor_runtime.transport.peer_certificates import NAME_AGAIN, is_for, not_for


@dataclass(frozen=True, slots=True)
class Admitted:
    """An agent that may take part, and how it shows that in its reports.

    Attributes:
        spec: the job.
        agent: its name.
        credentials: its own.
        files: the script as it was read, which its trainers run.
        software: what it runs.
    """

    spec: JobSpec
    agent: str
    credentials: Credentials
    files: ScriptFiles
    software: Software

    def proof(self, incarnation: str, address: str) -> str:
        """Return what shows others that this life knows the job's secret."""
        return self.credentials.proof(
            self.spec.job, self.spec.run, self.agent, incarnation, address
        )

    def believes(self, report: AgentReport) -> bool:
        """Say whether the sender of a report knows the job's secret."""
        of = (self.spec.job, self.spec.run, report.agent, report.incarnation, report.address)
        return self.credentials.believes(report.proof, *of)


def read_credentials(options: AgentOptions) -> Credentials:
    """Return what the agent was given to prove itself with.

    Raises:
        InputError: nothing, or what cannot be one.
    """
    return credentials_of(
        options.secret,
        options.tls_ca,
        options.tls_certificate,
        options.tls_key,
        listen=options.listen,
    )


def credentials_of(
    secret: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    *,
    listen: str = "",
) -> Credentials:
    """Return what these files prove: certificates if there are any, else the secret.

    `listen` is the address that a certificate has to name; "": it is compared when it is used.

    Raises:
        InputError: there are none, or they cannot be used.
    """
    if tls_ca and tls_certificate and tls_key:
        tls = MutualTls(tls_ca, tls_certificate, tls_key)
        try:
            names = tls.check()
        except ssl.SSLError as error:
            raise InputError(
                f"is not accepted by the authority of --tls-ca ({_why(error)}): "
                "give this agent's certificate and key, signed by the job's authority",
                file=tls_certificate,
            ) from error
        except OSError as error:
            raise InputError(f"cannot be read: {error}", key="--tls-ca") from error
        if listen and not is_for(names, address := _resolved(listen)):
            raise InputError(
                f"{not_for(names, address)}, the address of --listen: peers would refuse it; "
                f"{NAME_AGAIN}",
                file=tls_certificate,
            )
        return tls
    if secret is not None:
        try:
            return JobSecret(secret.read_bytes().strip())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=secret) from error
        except ValueError as error:
            raise InputError(str(error), file=secret) from error
    raise InputError(
        "agents need credentials: give --secret FILE, the same on every machine, or "
        "--tls-ca, --tls-certificate and --tls-key"
    )


def _why(error: ssl.SSLError) -> str:
    """Return what TLS says of a certificate, as far as it does: "certificate has expired"."""
    return str(getattr(error, "verify_message", "") or error.reason or error)


def _resolved(host: str) -> str:
    """Return the address that a server which listens at `host` has."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return host  # who listens there says what is wrong with it


async def admit(
    store: Store, spec: JobSpec, options: AgentOptions, credentials: Credentials
) -> Admitted:
    """Compare this agent with its job.

    Raises:
        InputError: it may not take part; its refusal stands in the store.
        StoreUnavailableError: the store does not answer.
    """
    try:
        await _check_credentials(store, spec, options, credentials)
        try:
            files = held(Path(spec.script))
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}; copy the script to the same path on every "
                "machine",
                file=spec.script,
            ) from error
        software = software_of(options.name, Path(spec.script), files, spec.traffic.scheme)
        allowed = options.allow_changed_script or spec.allow_changed_script
        await _check_software(store, spec.job, software, allowed=allowed)
    except InputError as error:
        refusal = Refusal(options.name, socket.gethostname(), str(error), time.time_ns())
        with contextlib.suppress(StoreUnavailableError):
            await store.transact(store_writes.refused(spec.job, refusal))
        raise
    return Admitted(spec, options.name, credentials, files, software)


def software_of(agent: str, script: Path, files: ScriptFiles, scheme: str) -> Software:
    """Return what an agent here runs.

    Args:
        agent: its name.
        script: the training program.
        files: of it, as they were read.
        scheme: by which the job's checkpoints travel.

    Raises:
        InputError: the scheme is a plugin's, of which no file can be read.
    """
    return Software(agent, _versions(), script.name, files.digests(), _plugin(scheme))


def _plugin(scheme: str) -> Mapping[str, str]:
    """Return the digests of the files of the plugin that a scheme is, if it is one."""
    plugin = plugin_of(scheme)
    if plugin is None:
        return {}
    file = source_of(plugin)
    try:
        digests = read_script(file).digests()
    except OSError as error:
        raise InputError(f"plugin {plugin} cannot be read: {error.strerror}", file=file) from error
    return {f"scheme {scheme}, {name}": digest for name, digest in digests.items()}


async def _check_credentials(
    store: Store, spec: JobSpec, options: AgentOptions, credentials: Credentials
) -> None:
    mark = spec.credentials
    if not mark.startswith("secret:") or isinstance(credentials, MutualTls):
        mark = await _first(store, credentials_key(spec.job), credentials.mark())
    if credentials.fits(mark):
        return
    if isinstance(credentials, MutualTls):
        what = "is not the authority of this job's agents"
        raise InputError(f"{what}: give the same --tls-ca on every machine", file=options.tls_ca)
    what = "is not the secret of this job" if mark.startswith("secret:") else "is of no use here"
    also = "" if mark.startswith("secret:") else "; its agents have certificates (--tls-ca)"
    raise InputError(
        f"{what}: copy the job's secret file to this machine again{also}", file=options.secret
    )


async def _check_software(store: Store, job: str, own: Software, *, allowed: bool) -> None:
    text = await _first(store, software_key(job), own.to_json())
    first = Software.from_json(text)
    if versions := other_versions(own, first):
        raise InputError(versions)
    keys, _ = await store.get_prefix(job_prefix(job))
    found = {item.key: item.value for item in keys}
    plan = Plan.from_json(found[plan_key(job)]) if plan_key(job) in found else None
    current = found.get(script_key(job, plan.script)) if plan is not None else None
    expected = first if current is None else Software.from_json(current)
    if not allowed and (script := other_script(own, expected)):
        raise InputError(script)
    await _first(store, script_key(job, own.digest), own.to_json())


async def _first(store: Store, key: str, value: str) -> str:
    """Return what the first one to come wrote into a key; that may be `value`, now."""
    await store.transact(store_writes.create(key, value))
    keys, _ = await store.get_prefix(key)
    return next(item.value for item in keys if item.key == key)


def _versions() -> Mapping[str, str]:
    return {
        "Castor": __version__,
        "Python": platform.python_version(),
        "torch": _version("torch"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
