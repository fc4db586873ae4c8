"""Where agents meet: the store of `castor_policy.store` on etcd.

Import it before anything else that loads google.protobuf (`etcd_client` says why).
"""

from __future__ import annotations

from castor_runtime.stores.embedded import EmbeddedEtcd, EtcdStartError
from castor_runtime.stores.etcd import CALL_TIMEOUT_S, EtcdStore

__all__ = ["EmbeddedEtcd", "EtcdStartError", "EtcdStore", "open_store"]


def open_store(url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> EtcdStore:
    """Open the store that `url` names; it connects with the first call.

    Args:
        url: etcd://HOST:PORT[,HOST:PORT...]; members of one cluster, the first preferred.
        timeout_s: the longest that a call takes.

    Raises:
        ValueError: it is no such URL.
    """
    scheme, separator, rest = url.partition("://")
    endpoints = []
    for part in rest.rstrip("/").split(","):
        host, colon, port = part.rpartition(":")
        if not (scheme == "etcd" and separator and host and colon and port.isdecimal()):
            raise ValueError(f"write a store as etcd://HOST:PORT[,HOST:PORT...], not {url!r}")
        endpoints.append((host, int(port)))
    return EtcdStore(endpoints, timeout_s=timeout_s)
