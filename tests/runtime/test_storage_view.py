"""Persistent storage that hangs: nobody waits for it, and it is told of once it answers.

A manifest that is a FIFO stands for a server that does not answer: whoever opens it waits.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from castor_policy.agents.events import StorageRead, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import PersistenceOptions
from castor_runtime.agent.holding import Holding
from castor_runtime.agent.memory import CheckpointMemory
from castor_runtime.agent.storage_view import StorageView
from castor_runtime.persistent.manifest import MANIFEST_NAME
from castor_runtime.persistent.storage import tag


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose storage hangs; let go at the end, so that no thread is left."""
    hung = tmp_path / tag(99999)
    hung.mkdir()
    os.mkfifo(hung / MANIFEST_NAME)
    yield tmp_path
    let_go(tmp_path)


def let_go(folder: Path) -> None:
    manifest = folder / tag(99999) / MANIFEST_NAME
    for _ in range(40):
        try:
            os.close(os.open(manifest, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            if not any(one.name.startswith("castor-storage") for one in threading.enumerate()):
                return
        time.sleep(0.05)


def spec_of(folder: Path) -> JobSpec:
    job = f"t{secrets.token_hex(4)}"
    return JobSpec(
        job,
        1,
        1,
        "group",
        ((0,),),
        "train.py",
        persistence=PersistenceOptions(tiers=(str(folder),), storage_s=0.5),
    )


def holding_of(spec: JobSpec, emit: list[WorkerEvent]) -> tuple[Holding, CheckpointMemory]:
    class NoLayouts:
        def layouts(self) -> dict[str, str]:
            return {}

    memory = CheckpointMemory(spec, "node-0")
    # Neither store nor peers are asked by an inspection of memory that is not there yet.
    nobody: Any = None
    holding = Holding(spec, memory, NoLayouts(), nobody, emit.append, nobody)  # type: ignore[arg-type]
    return holding, memory


def test_an_inspection_tells_of_memory_at_once_and_of_storage_once_it_answers(
    folder: Path,
) -> None:
    seen: list[WorkerEvent] = []

    async def inspect() -> None:
        holding, memory = holding_of(spec_of(folder), seen)
        began_s = time.monotonic()
        held, persistent = await holding.inspect(4, 0, thorough=False)
        assert time.monotonic() - began_s < 30
        assert (held, persistent) == ({}, None)
        assert seen == []
        let_go(folder)
        for _ in range(200):
            if seen:
                break
            await asyncio.sleep(0.05)
        holding.close()
        memory.close(unlink=True)

    asyncio.run(inspect())
    assert seen == [StorageRead(4, ())]


def test_storage_that_answers_is_told_of_with_memory(tmp_path: Path) -> None:
    async def inspect() -> object:
        holding, memory = holding_of(spec_of(tmp_path), [])
        found = await holding.inspect(4, 0, thorough=False)
        memory.close(unlink=True)
        return found

    assert asyncio.run(inspect()) == ({}, ())


def test_however_often_it_is_asked_storage_that_hangs_keeps_one_thread(folder: Path) -> None:
    async def ask() -> int:
        view = StorageView(spec_of(folder))
        asked = [asyncio.create_task(view.complete("")) for _ in range(5)]
        await asyncio.sleep(0.3)
        waiting = [t for t in threading.enumerate() if t.name == "castor-storage"]
        for one in asked:
            one.cancel()
        return len(waiting)

    assert asyncio.run(ask()) == 1


def test_checking_a_damaged_checkpoint_again_has_its_time(folder: Path) -> None:
    async def check() -> None:
        await asyncio.wait_for(StorageView(spec_of(folder)).recheck(0, 99999, "ab" * 16), 20)

    asyncio.run(check())


def test_storage_that_refuses_has_not_said_none(tmp_path: Path) -> None:
    """A file in the folder's place: an error of the file system, and then it is mended."""
    folder = tmp_path / "store"
    (folder / tag(3) / MANIFEST_NAME).mkdir(parents=True)  # reading it raises IsADirectoryError

    async def ask() -> tuple[int, ...]:
        view = StorageView(spec_of(folder))
        asking = asyncio.create_task(view.complete(""))
        await asyncio.sleep(0.3)
        assert not asking.done()
        (folder / tag(3) / MANIFEST_NAME).rmdir()
        return await asyncio.wait_for(asking, 20)

    assert asyncio.run(ask()) == ()
