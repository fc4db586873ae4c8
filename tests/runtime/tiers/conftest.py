"""A tier of each kind, and one that what stands before it makes go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from castor_lab.faulty_proxy import FaultyProxy
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.tier import Tier


@pytest.fixture
def between(s3: str) -> Iterator[FaultyProxy]:
    between = FaultyProxy(s3)
    yield between
    between.close()


@pytest.fixture(params=["local", "s3"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    """A tier of each kind: a folder, and a bucket."""
    if request.param == "local":
        return LocalTier(tmp_path / "tier")
    endpoint = request.getfixturevalue("s3")
    return tier_at(f"s3://bucket/{tmp_path.name}?endpoint_url={endpoint}")
