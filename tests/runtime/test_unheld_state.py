"""Looking at all objects of a process does its other threads no harm."""

from __future__ import annotations

import threading

from castor_runtime.trainer import unheld_state


class Wanted:
    """Of a kind that is looked for."""


def test_threads_that_build_tuples_do_not_fail_while_all_objects_are_looked_at() -> None:
    failed: list[SystemError] = []
    ends = threading.Event()

    def build() -> None:
        while not ends.is_set():
            try:
                tuple(sum(range(50)) for _ in range(200))
            except SystemError as error:
                failed.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    wanted = Wanted()
    many = [[number] for number in range(1_000_000)]
    try:
        found = [unheld_state._of_kinds((Wanted,)) for _ in range(6)]
        assert len(many) == 1_000_000
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert found == [[wanted]] * 6
