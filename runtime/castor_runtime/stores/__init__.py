"""Where agents meet: the store of `castor_policy.store` on etcd.

Import it before anything else that loads google.protobuf (`etcd_client` says why).
"""

from __future__ import annotations

from pathlib import Path

from castor_runtime.stores.certificates import Certificates
from castor_runtime.stores.embedded import UNIX, EmbeddedEtcd
from castor_runtime.stores.etcd import CALL_TIMEOUT_S, EtcdStore
from castor_runtime.stores.versions import EtcdStartError

FORM = (
    "etcd://HOST:PORT[,HOST:PORT...], etcds://HOST:PORT[,...]?certificates=FOLDER (ca.pem, "
    "client.pem, client.key) or etcd+unix:///PATH"
)
"""How a store is written."""

__all__ = ["EmbeddedEtcd", "EtcdStartError", "EtcdStore", "open_store"]


def open_store(url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> EtcdStore:
    """Open the store that `url` names; it connects with the first call.

    Args:
        url: `FORM`; several members of one cluster, the first preferred.
        timeout_s: the longest that a call takes.

    Raises:
        ValueError: it is no such URL.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "etcd+unix" and rest.startswith("/"):
        return EtcdStore([(UNIX, rest)], timeout_s=timeout_s)
    rest, _, folder = rest.partition("?certificates=")
    with_certificates = scheme == "etcds" and folder
    plain = scheme == "etcd" and not folder
    endpoints: list[tuple[str, int | str]] = []
    for part in rest.rstrip("/").split(","):
        host, colon, port = part.rpartition(":")
        known = separator and (plain or with_certificates)
        if not (known and host and colon and port.isdecimal()):
            raise ValueError(f"write a store as {FORM}, not {url!r}")
        endpoints.append((host, int(port)))
    certificates = Certificates(Path(folder)) if with_certificates else None
    return EtcdStore(endpoints, timeout_s=timeout_s, certificates=certificates)
