"""Memory is registered with the driver in pieces, once; a driver that refuses slows copies only."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from castor_runtime.trainer.pinning import HostPins

PIECE = 4096


class Driver:
    """cudart: knows ranges, refuses what it is told to, and notes who calls."""

    def __init__(self) -> None:
        self.ranges: dict[int, int] = {}
        self.refuses: set[int] = set()
        self.entered: set[int] = set()
        self.callers: set[int] = set()
        self._lock = threading.Lock()

    def enter_thread(self) -> None:
        self.entered.add(threading.get_ident())

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's
        with self._lock:
            self.callers.add(threading.get_ident())
            if len(self.ranges) in self.refuses:
                self.refuses.discard(len(self.ranges))
                return 2
            assert flags == 0
            assert start not in self.ranges
            self.ranges[start] = size
        return 0

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802 - likewise
        with self._lock:
            del self.ranges[start]
        return 0

    def pins(self) -> HostPins:
        return HostPins(lambda: self, self.enter_thread, PIECE)


def test_memory_is_pinned_in_pieces_by_threads_of_the_device_and_let_go_of() -> None:
    driver, memory = Driver(), torch.empty(3 * PIECE + 100, dtype=torch.uint8)
    pins = driver.pins()
    pins.pin(memory)
    start = memory.data_ptr()
    assert driver.ranges == {
        start: PIECE,
        start + PIECE: PIECE,
        start + 2 * PIECE: PIECE,
        start + 3 * PIECE: 100,
    }
    assert driver.callers <= driver.entered
    assert threading.get_ident() not in driver.callers  # its last error is nobody else's
    pins.unpin()
    assert driver.ranges == {}
    pins.unpin()


def test_a_driver_that_refuses_is_told_of_once_and_what_it_took_is_let_go_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    driver = Driver()
    driver.refuses = {1, 2}
    pins = driver.pins()
    # Both stay: memory that is let go of while it is registered may be given to the next tensor.
    segments = [torch.empty(3 * PIECE, dtype=torch.uint8) for _ in range(2)]
    for segment in segments:
        pins.pin(segment)
    said = capsys.readouterr().err
    assert said.count("the driver does not pin") == 1
    assert "error 2" in said
    assert "`ulimit -l` does not matter" in said
    assert 0 < len(driver.ranges) < 6
    pins.unpin()
    assert driver.ranges == {}


def test_no_copy_lies_in_two_pieces() -> None:
    driver, memory = Driver(), torch.zeros(3 * PIECE + 100, dtype=torch.uint8)
    pins = driver.pins()
    pins.pin(memory)
    source = torch.arange(2 * PIECE + 60, dtype=torch.int64).to(torch.uint8)
    target = memory[PIECE - 50 : 3 * PIECE + 10]
    pieces = pins.split(
        [(source, target), (None, memory[:10]), (None, memory[PIECE - 1 : PIECE + 1])]
    )
    assert [to.numel() for _, to in pieces] == [50, PIECE, PIECE, 10, 10, 1, 1]
    for what, to in pieces:
        first, last = to.data_ptr(), to.data_ptr() + to.numel() - 1
        holding = [(s, n) for s, n in driver.ranges.items() if s <= first and last < s + n]
        assert len(holding) == 1
        if what is not None:
            to.copy_(what)
    assert torch.equal(target[: 2 * PIECE + 60], source)
    # Memory that is not pinned is left as it is.
    other = torch.empty(10, dtype=torch.uint8)
    assert [to.numel() for _, to in pins.split([(None, other)])] == [10]


def test_without_pages_pinned_nothing_is_split() -> None:
    made: Any = SimpleNamespace()
    pins = HostPins(lambda: made, lambda: None)
    target = torch.empty(10, dtype=torch.uint8)
    assert pins.split([(None, target)])[0][1].data_ptr() == target.data_ptr()
