"""What the runtime knows of the lab: names in options and environments, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import castor_runtime
from castor_lab.emulated_cluster import namespaces
from castor_lab.emulated_cluster.layout import Host
from castor_lab.emulated_cluster.network import place_on
from castor_lab.emulated_cluster.storage_traffic import StorageLink, storage_environment
from castor_lab.paced_device import paced_device
from castor_lab.pacing import PACED_DEVICE
from castor_runtime.named import named
from castor_runtime.pacing import storage_pacer


def test_no_module_of_the_runtime_names_the_lab() -> None:
    modules = sorted(Path(castor_runtime.__file__).parent.rglob("*.py"))
    assert len(modules) > 100
    assert [path.name for path in modules if "castor_lab" in path.read_text()] == []


def test_a_job_names_the_paced_device() -> None:
    assert named(PACED_DEVICE) is paced_device


def test_an_emulated_host_names_its_storage_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in storage_environment("10.0.0.9:7000").items():
        monkeypatch.setenv(name, value)
    assert isinstance(storage_pacer(reading=True), StorageLink)
    assert isinstance(storage_pacer(bytes_per_s=8.0), StorageLink)


def test_an_emulated_host_names_how_its_namespace_is_entered() -> None:
    host = Host("mine", "node-0", "10.0.0.1")
    place = place_on(host, "10.0.0.9:7000")
    assert (named(place.enter), place.host) == (namespaces.enter, host.namespace)
    assert storage_environment("10.0.0.9:7000").items() <= place.environment.items()
