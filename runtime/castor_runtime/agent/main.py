"""The agent's main function: what `castor agent` runs, and what an emulated machine runs."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from castor_configs.errors import InputError
from castor_policy.agents.domain_call import Answer, answers_prefix, call_key
from castor_policy.agents.exit_codes import STORE_AWAY, TERMINATED
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import spec_key
from castor_policy.store import Put, Store, StoreRefusedError, StoreUnavailableError, Txn
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.own_log import keep_stderr
from castor_runtime.agent.trainer_fork_server import fork_trainer_server

if TYPE_CHECKING:
    from castor_runtime.agent.admission import Admitted
    from castor_runtime.transport import Credentials

AnswerT = TypeVar("AnswerT")


class _StoreAwayError(Exception):
    """The store did not answer for as long as it is waited for."""


def run_agent(options: AgentOptions, given: JobSpec | None = None) -> int:
    """Run an agent until its job ends.

    Args:
        options: how it is started.
        given: the job, which is made if the store has none of its name; None: it must be there.

    Returns:
        See `castor_policy.agents.exit_codes`.

    Raises:
        InputError: the store has no such job or refuses, or credentials are missing.
    """
    # Before the first thread, of which the store's client has several.
    pid, link = fork_trainer_server()
    keep_stderr(options.folder)
    return asyncio.run(_serve(options, given, pid, link))


async def _serve(
    options: AgentOptions, given: JobSpec | None, server_pid: int, link: socket.socket
) -> int:
    # Imported here: the store's client starts threads when it is imported or connects.
    from castor_runtime.agent.admission import read_credentials  # noqa: PLC0415
    from castor_runtime.agent.driver import Agent  # noqa: PLC0415
    from castor_runtime.agent.job_making import new_job  # noqa: PLC0415
    from castor_runtime.agent.trainer_fork_link import TrainerForkLink  # noqa: PLC0415
    from castor_runtime.stores import open_store  # noqa: PLC0415

    credentials = read_credentials(options)
    forks = TrainerForkLink(link, server_pid)
    await forks.open()
    store = open_store(options.store)
    try:
        own = None if given is None else new_job(given, credentials)
        spec = await _job(store, options, own)
        if isinstance(spec, int):
            return spec
        admitted = await _admitted(store, spec, options, credentials)
        agent = Agent(options, admitted, store, forks)
        if own is not None and own.run == spec.run:
            agent.tell_beginning()
        forks.on_lost(agent.forks_lost)
        serving = asyncio.create_task(agent.run())
        loop = asyncio.get_running_loop()

        def end() -> None:
            # Who drains has this machine leave at once by a second one.
            patience_s = options.drain_on_term_s
            if patience_s and agent.leave(patience_s):
                return
            # Once: a second one must not cut off what the first has begun.
            if not serving.cancelling():
                serving.cancel()

        loop.add_signal_handler(signal.SIGTERM, end)
        return await serving
    except asyncio.CancelledError:
        return TERMINATED
    except _StoreAwayError as error:
        sys.stderr.write(f"castor: {options.store} {error}\n")
        return STORE_AWAY
    finally:
        forks.close()


async def _job(store: Store, options: AgentOptions, own: JobSpec | None) -> JobSpec | int:
    """Return the job, made by this agent as `own` or not; or an exit code, see `make_or_join`."""
    from castor_runtime.agent.job_making import make_or_join  # noqa: PLC0415

    if own is None:
        return await read_spec(store, options)

    def say(text: str) -> None:
        sys.stderr.write(f"castor: {text}\n")

    return await _answered(options, lambda: make_or_join(store, own, say))


async def read_spec(store: Store, options: AgentOptions) -> JobSpec:
    """Return the job once it is in the store; say the failure domain to who asks before.

    Raises:
        InputError: it does not come, or the store refuses.
        _StoreAwayError: the store does not answer.
    """
    give_up_s = time.monotonic() + options.wait_s
    key, call = spec_key(options.job), call_key(options.job)
    none = f"has no job {options.job!r}; start it with `castor train --job {options.job}`"
    failure: Exception = InputError(f"{options.store} {none}")
    while True:
        try:
            found, _ = await store.get_prefix(key)
            for item in found:
                if item.key == key:
                    return JobSpec.from_json(item.value)
            called, _ = await store.get_prefix(call)
            if any(item.key == call for item in called):
                # The job is to come, and is placed by what its agents say now.
                await store.transact(Txn((), (_answer(options),)))
                give_up_s = time.monotonic() + options.wait_s
        except StoreRefusedError as error:
            raise InputError(str(error), key="--store") from error
        except StoreUnavailableError as error:
            failure = _StoreAwayError(f"does not answer: {error}")
        except ValueError as error:
            raise InputError(f"job {options.job}: {error}") from error
        if time.monotonic() > give_up_s:
            raise failure
        await asyncio.sleep(0.2)


def _answer(options: AgentOptions) -> Put:
    answer = Answer(options.name, options.standby, options.domain)
    return Put(answers_prefix(options.job) + options.name, answer.to_json())


async def _admitted(
    store: Store, spec: JobSpec, options: AgentOptions, credentials: Credentials
) -> Admitted:
    from castor_runtime.agent.admission import admit  # noqa: PLC0415

    return await _answered(options, lambda: admit(store, spec, options, credentials))


async def _answered(options: AgentOptions, ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Ask the store again for as long as it may be away.

    Raises:
        InputError: it refuses; or `ask` says so, or finds what it cannot read.
        _StoreAwayError: it stayed away.
    """
    give_up_s = time.monotonic() + options.wait_s
    while True:
        try:
            return await ask()
        except StoreRefusedError as error:
            raise InputError(str(error), key="--store") from error
        except StoreUnavailableError as error:
            if time.monotonic() > give_up_s:
                raise _StoreAwayError(f"does not answer: {error}") from error
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"job {options.job}: {error}") from error
        await asyncio.sleep(0.2)
