"""Calls that may never return, in threads that may be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")


def abandonable(call: Callable[[], ResultT], name: str) -> asyncio.Future[ResultT]:
    """Begin `call` in a thread of its own and return the future of its result.

    A file system that does not answer keeps a thread for as long as it likes. `asyncio.to_thread`
    would wait for it when the process ends; this thread is a daemon, and nobody waits for it.

    Args:
        call: whatever may hang.
        name: of the thread, for people who look at the process.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[ResultT] = loop.create_future()

    def settle(value: ResultT | None, error: BaseException | None) -> None:
        if result.done():
            return  # whoever asked has given it up
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # a result where there is no error

    def work() -> None:
        value, error = None, None
        try:
            value = call()
        except BaseException as raised:  # noqa: BLE001 - it belongs to whoever asked
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has ended
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return result
