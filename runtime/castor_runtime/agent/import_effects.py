"""What a script's imports may not do where trainers are forked from, and how they are kept from it.

A fork copies one thread. Torch's threads, once they have computed something together, are waited
for in the copy for ever: in its first operation that would use them. So one thread computes while
the script's modules are imported; as many as they ask for, trainers have. A GPU cannot be used by a
copy of a process that has used it: that is seen, and said by each trainer in its log.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ImportEffects:
    """Knows what imports in this process have asked for, and whether copies of it can use a GPU.

    Torch must be imported already, and must not have computed anything in parallel.
    """

    def __init__(self) -> None:
        # Not at this module's top: what reads the environment must be set before.
        self._torch: Any = importlib.import_module("torch")
        self._set_threads: Callable[[int], None] = self._torch.set_num_threads
        self._at_first: int = self._torch.get_num_threads()
        self._asked: int | None = None
        self._holds = False
        self._refusal = ""
        # For good: a module may have taken the name by then.
        vars(self._torch)["set_num_threads"] = self._choose

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have torch compute with one thread inside the `with`, whatever it is asked for."""
        self._set_threads(1)
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def import_all(self, script: Path, names: Iterable[str]) -> None:
        """Import modules for a script, and see what that has done to a GPU.

        One that fails is left to the trainer, which will say it.
        """
        first = ""
        with self.held():
            for name in names:
                with contextlib.suppress(Exception):  # the trainer will say it
                    importlib.import_module(name)
                if not first and self._torch.cuda.is_initialized():
                    first = name
        if not first and not self._is_poisoned():
            self._refusal = ""
        elif not self._refusal:  # else it is of a process that this one is a copy of
            self._refusal = _refusal(script, first or "a module")

    def check(self) -> None:
        """Return if a trainer may run here.

        Raises:
            SystemExit: the imports have used a GPU; says which, and what to do.
        """
        if self._refusal:
            raise SystemExit(self._refusal)

    def release(self, threads: int | None) -> None:
        """Have this process, a copy, compute with as many threads as were asked for.

        Args:
            threads: where no import has asked; None: as many as torch takes by itself.
        """
        self._set_threads(self._asked or threads or self._at_first)

    def _choose(self, threads: int) -> None:
        if self._holds:
            self._asked = threads
        else:
            self._set_threads(threads)

    def _is_poisoned(self) -> bool:
        """Return whether a copy of this process could not use a GPU: only a copy knows."""
        pid = os.fork()
        if pid == 0:
            os._exit(int(self._torch.cuda._is_in_bad_fork()))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


@functools.cache
def import_effects() -> ImportEffects:
    """Return those of this process; a copy of it has what it knew."""
    return ImportEffects()


def _refusal(script: Path, module: str) -> str:
    return (
        f"{script.name} imports {module}, which uses the GPU while it is imported: a trainer is "
        "forked after that, and could not use it. Do so in a function, or import the module in "
        "main()"
    )
