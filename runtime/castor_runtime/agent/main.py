"""The agent's main function: what `castor agent` runs, and what an emulated machine runs."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

from castor_configs.errors import InputError
from castor_policy.agents.documents import JobSpec, spec_key
from castor_policy.store import Store, StoreUnavailableError
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.trainer_host import fork_host


def run_agent(options: AgentOptions) -> int:
    """Run an agent until its job ends.

    Returns:
        0 if the job finished, 1 if it was given up, 3 if the trainer host died.

    Raises:
        InputError: the store cannot be reached, has no such job, or credentials are missing.
    """
    # Before the first thread, of which the store's client has several.
    pid, link = fork_host()
    return asyncio.run(_serve(options, pid, link))


async def _serve(options: AgentOptions, host_pid: int, link: socket.socket) -> int:
    # Imported here: the store's client starts threads when it is imported or connects.
    from castor_runtime.agent.driver import Agent  # noqa: PLC0415
    from castor_runtime.agent.host_link import HostLink  # noqa: PLC0415
    from castor_runtime.stores import open_store  # noqa: PLC0415

    credentials = _credentials(options)
    host = HostLink(link, host_pid)
    await host.open()
    store = open_store(options.store)
    spec = await _read_spec(store, options)
    agent = Agent(options, spec, store, host, credentials)
    host.on_lost(agent.host_lost)
    serving = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, serving.cancel)
    try:
        return await serving
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    finally:
        host.close()


async def _read_spec(store: Store, options: AgentOptions) -> JobSpec:
    give_up_s = time.monotonic() + options.wait_s
    key = spec_key(options.job)
    failure = f"has no job {options.job!r}; start it with `castor train --job {options.job}`"
    while True:
        try:
            found, _ = await store.get_prefix(key)
            for item in found:
                if item.key == key:
                    return JobSpec.from_json(item.value)
        except StoreUnavailableError as error:
            failure = f"does not answer: {error}"
        except ValueError as error:
            raise InputError(f"job {options.job}: {error}") from error
        if time.monotonic() > give_up_s:
            raise InputError(f"{options.store} {failure}")
        await asyncio.sleep(0.2)


def _credentials(options: AgentOptions) -> object:
    from castor_runtime.transport import JobSecret, MutualTls  # noqa: PLC0415

    if options.tls_ca and options.tls_certificate and options.tls_key:
        return MutualTls(options.tls_ca, options.tls_certificate, options.tls_key)
    if options.secret is not None:
        return JobSecret(options.secret.read_bytes().strip())
    raise InputError(
        "agents do not speak with strangers: give --secret FILE, the same on every machine, or "
        "--tls-ca, --tls-certificate and --tls-key"
    )
