"""Where a persistent tier is, as people write it: a folder, or a URL with options.

    out/store
    s3://bucket/prefix?endpoint_url=https://minio.lab:9000&region=eu-1&credentials=/etc/castor/s3
    gs://bucket/prefix

The URL stands in the job, which everybody reads who reaches the store: so there is no secret in it.
Secrets come from the environment of each machine's agent, from a profile, or from a file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.object_tier import ObjectTier
from castor_runtime.persistent.refusals import INSTALL_S3
from castor_runtime.persistent.tier import Tier

OLDEST_S3FS: Final = (2026,)
"""Older ones do not make a file only where there is none, or know another fsspec."""

_OBJECT_STORES: Final = ("s3", "gs", "az", "oci", "oss", "tos")
"""Of fsspec's: where a file is there whole or not at all. Whether one makes a file only where there
is none is looked at before a job starts (`Tier.probe`)."""

_ALSO_CALLED: Final = {"s3a": "s3", "gcs": "gs", "abfs": "az"}

_S3_OPTIONS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "endpoint_url": lambda value: {"endpoint_url": value},
    "region": lambda value: {"client_kwargs": {"region_name": value}},
    "profile": lambda value: {"profile": value},
    "credentials": lambda value: {"credentials": value},
}

_S3_TIMES: Final[Mapping[str, Any]] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"mode": "standard", "max_attempts": 5},
    },
    # Of one file, one part at a time: that bounds what is in memory, and ranks write side by side.
    "max_concurrency": 1,
}


def tier_at(url: str) -> Tier:
    """Return the tier at a folder's path or a URL; nothing is asked of it yet.

    Raises:
        ValueError: there can be none; says why.
    """
    protocol, separator, rest = url.partition("://")
    if not separator:
        return LocalTier(Path(url))
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.fragment or "::" in url:
        raise ValueError(
            f"{protocol}://...: no name, password or second URL can stand in it, as everybody sees "
            "it: give credentials in the environment of the agents, or in a file"
        )
    if protocol == "file":
        if parts.netloc or parts.query:
            raise ValueError(f"{url}: write file:///PATH, or the path alone")
        return LocalTier(Path(unquote(parts.path)))
    given, protocol = protocol, _ALSO_CALLED.get(protocol, protocol)
    if protocol not in _OBJECT_STORES:
        raise ValueError(
            f"{given}://... is no tier, it is no object store that is known here: name "
            f"s3://BUCKET/PREFIX or another of {', '.join(_OBJECT_STORES)}, or mount what is "
            "there and name the folder"
        )
    plain = rest.partition("?")[0].rstrip("/")
    if not plain:
        raise ValueError(f"{url}: name a bucket, and a prefix: {protocol}://BUCKET/PREFIX")
    return _object_tier(url, protocol, f"{protocol}://{plain}", parts.query, os.getpid())


@functools.lru_cache(maxsize=64)
def _object_tier(url: str, protocol: str, shown: str, query: str, _: int) -> ObjectTier:
    """Return the same tier for the same URL: to connect costs half a second of processor time.

    But never to a process that was forked from another.
    """
    return ObjectTier(shown, protocol, _options(url, protocol, query))


def require_usable(url: str) -> None:
    """Check that what reaches this tier is installed here.

    Raises:
        ValueError: it is not; says what to do.
    """
    tier = tier_at(url)
    if isinstance(tier, LocalTier):
        return
    protocol = tier.url.partition("://")[0]
    from fsspec.registry import get_filesystem_class  # noqa: PLC0415

    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        extra = INSTALL_S3 if protocol == "s3" else str(error)
        raise ValueError(f"{url} needs a package that is not installed: {extra}") from None
    if protocol == "s3":
        import s3fs  # noqa: PLC0415 - seldom used

        found = tuple(int(step) for step in s3fs.__version__.split(".")[:1] if step.isdigit())
        if found < OLDEST_S3FS:
            raise ValueError(
                f"{url} needs s3fs of 2026 or later, here is {s3fs.__version__}: {INSTALL_S3}"
            )


def _options(url: str, protocol: str, query: str) -> dict[str, Any]:
    known = _S3_OPTIONS if protocol == "s3" else {}
    made: dict[str, Any] = dict(_S3_TIMES) if protocol == "s3" else {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or not value:
            told = f"there are {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{url.partition('?')[0]}: no option {name!r}: {told}")
        made.update(known[name](value))
    return made
