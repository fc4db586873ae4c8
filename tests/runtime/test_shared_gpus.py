"""Emulated machines on one computer share its GPUs out; no test here has any."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_runtime.launcher.shared_gpus import SharedGpus, count_gpus, visible_gpus
from castor_runtime.launcher.site import ThisMachine


def shared(gpus: int, ranks: int, machines: int, standbys: int = 0) -> SharedGpus:
    site = SharedGpus(ThisMachine(), ranks, lambda: tuple(map(str, range(gpus))))
    site.open(machines=machines, standbys=standbys, log=Path("unused"))
    return site


def test_each_machine_has_gpus_of_its_own() -> None:
    site = shared(8, 2, 3, standbys=1)
    names = ("node-0", "node-1", "node-2", "spare-0")
    found = [site.place(name).environment["CUDA_VISIBLE_DEVICES"] for name in names]
    assert found == ["0,1", "2,3", "4,5", "6,7"]
    assert site.place("node-1").environment["CUDA_VISIBLE_DEVICES"] == "2,3", "started again"


def test_a_spare_takes_the_gpus_of_a_machine_that_is_gone() -> None:
    site = shared(3, 1, 3)
    for machine in range(3):
        site.place(f"node-{machine}")
    with pytest.raises(InputError, match="no GPUs are left for spare-0"):
        site.place("spare-0")
    site.left("node-2")
    site.left("node-1")
    site.place("node-2")  # started again
    assert site.place("spare-0").environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_fewer_gpus_than_ranks_are_told() -> None:
    with pytest.raises(InputError) as told:
        shared(4, 2, 2, standbys=1)
    assert told.value.key == "--nodes"
    said = (
        "2 emulated machines and 1 to stand by, of 2 ranks each, need 6 GPUs, and this computer "
        "has 4: train with fewer"
    )
    assert said in str(told.value)
    assert "DS_ACCELERATOR=cpu" in str(told.value)


def test_without_gpus_nothing_is_set() -> None:
    assert dict(shared(0, 2, 4).place("node-0").environment) == {}


def test_what_is_visible_is_what_the_user_lets_torch_see() -> None:
    assert visible_gpus({}, lambda: 3) == ("0", "1", "2")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "5, GPU-77,9"}, lambda: 2) == ("5", "GPU-77")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, lambda: 0) == ()
    assert visible_gpus({"DS_ACCELERATOR": "cuda"}, lambda: 1) == ("0",)
    asked: list[int] = []
    assert visible_gpus({"DS_ACCELERATOR": "cpu"}, lambda: asked.append(1) or 8) == ()
    assert not asked, "nobody needs to know"


def test_another_process_is_asked_and_only_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = "castor_runtime.launcher.shared_gpus"
    monkeypatch.setattr(f"{module}._DRIVERS", (str(tmp_path / "none"),))
    monkeypatch.setattr(f"{module}._ASK", "print(4)")
    assert count_gpus() == 0
    monkeypatch.setattr(f"{module}._DRIVERS", (str(tmp_path),))
    assert count_gpus() == 4
    monkeypatch.setattr(f"{module}._ASK", "raise OSError('no driver')")
    assert count_gpus() == 0
