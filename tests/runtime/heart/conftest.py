"""What is particular to processes that are threads."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from castor_lab.one_process import Cluster, small_job

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow what is killed here its open files and sockets: a process's would be closed for it."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Close them before a test elsewhere is blamed for it."""
    yield
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Cluster]]:
    """Make small jobs, each of as many iterations as the module says."""
    clusters: list[Cluster] = []

    def made(standby: int = 0, folder: Path | None = None, **changes: Any) -> Cluster:
        spec = small_job(**changes)
        folder = folder or tmp_path_factory.mktemp(spec.job)
        iterations = request.module.ITERATIONS
        clusters.append(Cluster(spec, folder, iterations=iterations, standby=standby))
        return clusters[-1]

    yield made
    for cluster in clusters:
        cluster.remove_memory()


@pytest.fixture(scope="module")
def whole(make: Callable[..., Cluster]) -> str:
    """The final state of a run that nothing happens to."""
    state = make().run().state
    assert state is not None
    return state
