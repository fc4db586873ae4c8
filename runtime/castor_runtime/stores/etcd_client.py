"""Loads the etcd3 client; the only module that imports it, grpc or protobuf.

etcd3 0.12.0 (2020, its last release) carries protocol classes generated for protobuf 3. protobuf's
C implementation refuses those since 4.21; the Python one, which protobuf still carries, takes them
with a warning. Which one a process has is settled once, when google.protobuf is first loaded, by an
environment variable; so this module sets it for the moment of loading, and takes it back, for what
this process starts is free to choose. Our messages are few and small: the Python one costs about a
tenth of a millisecond a call.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from castor_policy.store import Keys
from castor_runtime.store_address import UNIX, Tls

_CHOICE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
_WHILE_LOADING = {_CHOICE: "python", "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "NONE")}
"""Our errors tell what gRPC would write to the screen beside them."""


@contextmanager
def _python_protobuf() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _WHILE_LOADING}
    os.environ.update(_WHILE_LOADING)
    try:
        with warnings.catch_warnings():
            # Each generated descriptor says that it is deprecated; nobody can regenerate them.
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


with _python_protobuf():
    from google.protobuf.internal import (  # type: ignore[import-untyped]  # ships no types
        api_implementation,
    )

    if api_implementation.Type() != "python":
        raise ImportError(
            "google.protobuf was loaded before castor_runtime.stores, with an implementation that "
            "etcd3 cannot use: import castor_runtime.stores first, or set "
            f"{_CHOICE}=python in the environment"
        )
    import grpc  # type: ignore[import-untyped]  # ships no types
    from etcd3 import Etcd3Client, etcdrpc

__all__ = [
    "Etcd3Client",
    "EtcdEndpoint",
    "RpcError",
    "StatusCode",
    "etcdrpc",
    "key_ranges",
    "prefix_range",
]

RpcError = grpc.RpcError
StatusCode = grpc.StatusCode

_OPTIONS = (
    # Control traffic goes straight to etcd, whatever proxy the environment names for the web.
    ("grpc.enable_http_proxy", 0),
    # After an outage be back within half a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),  # is also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),
    # Find a connection that is open and dead even where only a watch uses it. etcd closes
    # connections that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
)

_METADATA = (("hasleader", "true"),)
"""An etcd member cut off from the others then refuses instead of keeping us waiting."""


class EtcdEndpoint:
    """One etcd member: its calls with a deadline each. Nothing connects before the first call.

    Args:
        host: name or address; "unix": `port` is the path of a socket.
        port: its client port.
        tls: to encrypt with; None: nothing is.
    """

    def __init__(self, host: str, port: int | str, tls: Tls | None = None) -> None:
        self.name = f"{host}:{port}"
        self.address = (host, port)
        # etcd refuses what gRPC makes of a path for a name.
        named = (("grpc.default_authority", "localhost"),) if host == UNIX else ()
        options = _OPTIONS + named
        self._client = Etcd3Client(host=host, port=port, grpc_options=options, **_files(tls))
        self._watch = etcdrpc.WatchStub(self._client.channel).Watch
        self._methods = {
            etcdrpc.TxnRequest: self._client.kvstub.Txn,
            etcdrpc.RangeRequest: self._client.kvstub.Range,
            etcdrpc.AlarmRequest: self._client.maintenancestub.Alarm,
            etcdrpc.StatusRequest: self._client.maintenancestub.Status,
            etcdrpc.AuthenticateRequest: etcdrpc.AuthStub(self._client.channel).Authenticate,
            etcdrpc.LeaseGrantRequest: self._client.leasestub.LeaseGrant,
            etcdrpc.LeaseRevokeRequest: self._client.leasestub.LeaseRevoke,
            # The service streams renewals both ways. A stream of one message each is, on the
            # wire, a plain call, and a plain call has a deadline and needs no thread.
            etcdrpc.LeaseKeepAliveRequest: self._client.channel.unary_unary(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                request_serializer=etcdrpc.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=etcdrpc.LeaseKeepAliveResponse.FromString,
            ),
        }

    def begin(self, request: Any, timeout_s: float, token: str = "") -> Any:
        """Start the call that takes such a request; return grpc's future of the response.

        Args:
            request: of etcd's.
            timeout_s: its deadline.
            token: that a password was exchanged for; "": none.
        """
        method = self._methods[type(request)]
        return method.future(request, timeout=timeout_s, metadata=_metadata(token))

    def begin_watch(self, requests: Iterator[Any], token: str = "") -> Any:
        """Start a stream of watch requests; return grpc's iterator of responses."""
        return self._watch(requests, metadata=_metadata(token))

    def close(self) -> None:
        """End the connection and all its calls."""
        self._client.close()


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (*_METADATA, ("token", token)) if token else _METADATA


def _files(tls: Tls | None) -> dict[str, str]:
    """Return how the client is told of certificates."""
    if tls is None:
        return {}
    own = {"cert_cert": str(tls.certificate), "cert_key": str(tls.key)} if tls.certificate else {}
    return {"ca_cert": str(tls.ca), **own}


def key_ranges(keys: Keys) -> Iterator[tuple[bytes, bytes]]:
    """Yield for each part of `keys` the first key and the first one after it; b"": it alone."""
    for name in sorted(keys.names):
        yield name.encode(), b""
    for prefix in keys.prefixes:
        yield prefix_range(prefix)


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the first key with that prefix and the first one after all of them.

    UTF-8 sorts as code points do and never ends in 0xff, so the last byte can be counted up.
    """
    first = prefix.encode()
    return first, first[:-1] + bytes([first[-1] + 1])
