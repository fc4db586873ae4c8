"""Where agents meet: the store of `castor_policy.store` on etcd.

Import it before anything else that loads google.protobuf (`etcd_client` says why).
"""

from __future__ import annotations

from castor_runtime.store_address import parse_store
from castor_runtime.stores.embedded import EmbeddedEtcd
from castor_runtime.stores.etcd import CALL_TIMEOUT_S, EtcdStore
from castor_runtime.stores.versions import EtcdStartError

__all__ = ["EmbeddedEtcd", "EtcdStartError", "EtcdStore", "open_store"]


def open_store(url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> EtcdStore:
    """Open the store that `url` names; it connects with the first call.

    Args:
        url: see `castor_runtime.store_address`.
        timeout_s: the longest that a call takes.

    Raises:
        ValueError: it is no such URL, or lacks a file or a password.
    """
    return EtcdStore(parse_store(url), timeout_s=timeout_s)
