"""Worker processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Thread, current_thread, main_thread
from typing import Self, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Workers:
    """`jobs` processes to run tasks in; with one job, tasks run in this process.

    Use it as a context manager. On an error, an interruption by Ctrl-C included, tasks in hand
    are dropped at once. If this process is killed, the workers end by themselves.
    """

    def __init__(self, jobs: int) -> None:
        """Start nothing yet.

        Args:
            jobs: how many processes, at least 1.

        Raises:
            ValueError: fewer than one job.
        """
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; use 1 or more")
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None
        self._stop: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._stop is not None:
            self._stop.close()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        if self._stop is not None:
            self._stop.close()

    def map(
        self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]
    ) -> Iterator[tuple[int, ResultT]]:
        """Yield (index, function(item)) of every item, as they are done.

        Args:
            function: of a module, with arguments and results that can be pickled.
            items: what to call it with.

        Raises:
            BrokenProcessPool: a worker was killed, for instance for want of memory.
        """
        if self._jobs == 1:
            for index, item in enumerate(items):
                yield index, function(item)
            return
        executor = self._started()
        with _interrupts_held():
            futures: dict[Future[ResultT], int] = {
                executor.submit(function, item): index for index, item in enumerate(items)
            }
        for future in as_completed(futures):
            yield futures.pop(future), future.result()

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # Forked children would inherit the locks of numba's threads.
            spawn = multiprocessing.get_context("spawn")
            stopped, self._stop = spawn.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(
                self._jobs, mp_context=spawn, initializer=_begin, initargs=(stopped,)
            )
        return self._executor


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from processes started meanwhile: they inherit what is blocked, for good.

    A terminal sends it to all of them, and each would print a traceback of its own. Here it is
    only late: blocking is not enough for that, since another thread may take the signal and Python
    then runs the handler in this one, which may leave a worker half started.
    """
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = current_thread() is main_thread()
    if in_main_thread:
        signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def _begin(stopped: Connection) -> None:
    Thread(target=_end_with_parent, args=(stopped,), daemon=True).start()


def _end_with_parent(stopped: Connection) -> None:
    """End this worker when the parent's end of the pipe closes: by its hand, or by its death."""
    try:
        stopped.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
