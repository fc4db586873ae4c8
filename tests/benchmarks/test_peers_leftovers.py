"""What a killed system leaves in shared memory goes after its run; what is another's stays."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


def test_what_nobody_maps_any_more_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    from leftovers import remove_left_since  # noqa: PLC0415 - of a folder of scripts

    files = {name: tmp_path / name for name in ("before", "left", "mapped", "castor-run")}
    for file in files.values():
        file.write_bytes(b"x" * mmap.PAGESIZE)
    began_s = files["left"].stat().st_ctime
    while (tmp_path / "before").stat().st_ctime >= began_s:  # as coarse as the kernel's tick
        for name in ("left", "mapped", "castor-run"):
            files[name].touch()
        began_s = files["left"].stat().st_ctime
    descriptor = os.open(files["mapped"], os.O_RDWR)
    with mmap.mmap(descriptor, mmap.PAGESIZE):
        os.close(descriptor)
        assert remove_left_since(began_s, tmp_path, patience_s=0) == ["left"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["before", "castor-run", "mapped"]


def test_what_is_mapped_by_a_process_that_is_still_dying_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    from leftovers import remove_left_since  # noqa: PLC0415 - of a folder of scripts

    file = tmp_path / "left"
    file.write_bytes(b"x" * mmap.PAGESIZE)
    with file.open("r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
    unmapping = threading.Timer(0.3, mapped.close)
    unmapping.start()
    assert remove_left_since(file.stat().st_ctime, tmp_path) == ["left"]
    assert not file.exists()
    unmapping.join()
