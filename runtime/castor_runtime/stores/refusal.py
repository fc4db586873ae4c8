"""Why a store lets us not in, as the end of a sentence that begins with its name.

What etcd says of users and passwords, and what TLS says, of which gRPC tells "Socket closed" only.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from castor_runtime.store_address import PASSWORD_VARIABLE, Tls
from castor_runtime.stores.etcd_client import StatusCode

_PATIENCE_S = 1.0
_TLS_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "asks for a certificate: add certificate=FILE&key=FILE",
    "TLSV1_ALERT_UNKNOWN_CA": "does not know the authority of our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "does not take our certificate",
    "TLSV1_ALERT_BAD_CERTIFICATE": "does not take our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "says that our certificate has expired",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "and we agree on no way to encrypt",
}


def is_of_token(code: Any, details: str | None) -> bool:
    """Whether a call was refused for its token alone: it has ended, or users have changed since."""
    said = details or ""
    return code is StatusCode.UNAUTHENTICATED or "revision of auth store is old" in said


def refusal_of_login(details: str | None, user: str) -> str:
    """Return why no token was given for a password; "" where that was not the reason."""
    said = details or ""
    if "authentication failed" in said:
        return f"does not take the password of {user!r} (or has no such user): {PASSWORD_VARIABLE}"
    if "authentication is not enabled" in said:
        return f"asks nobody for a password: leave the user {user!r} out of its address"
    return ""


def refusal_of_user(code: Any, details: str | None, user: str) -> str:
    """Return why a call of `user` was refused; "" where that was not the reason."""
    said = details or ""
    if "user name is empty" in said:
        return f"asks for a user: write USER@HOST:PORT, and the password in {PASSWORD_VARIABLE}"
    if code is StatusCode.PERMISSION_DENIED:
        return (
            f"lets {user!r} not read and write keys under /castor/: grant the user a role with "
            "`etcdctl role grant-permission ROLE readwrite /castor/ --prefix`"
        )
    if code is StatusCode.UNAUTHENTICATED:
        return f"does not let {user!r} in: {said}"
    return ""


def refusal(host: str, port: int, tls: Tls | None) -> str:
    """Return why the store at `host`:`port` lets us not in, as the end of a sentence; "" if unsure.

    Blocks for a second or two at most.
    """
    try:
        with socket.create_connection((host, port), _PATIENCE_S) as connection:
            connection.settimeout(_PATIENCE_S)
            why = _of_tls(connection, host, tls) if tls is not None else _of_plain(connection)
        hung_up = not why and tls is not None
        return "speaks no TLS: write etcd://" if hung_up and _speaks_http(host, port) else why
    except socket.gaierror as error:
        return f"cannot be found: {error.strerror}"
    except OSError:
        return ""  # down, or not there: what gRPC says is enough


def _of_plain(connection: socket.socket) -> str:
    """Try whether it speaks TLS, where we do not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            return "speaks TLS: write etcds://"
    except ssl.SSLError as error:
        spoke = "ALERT" in (error.reason or "")
        return "speaks TLS: write etcds://" if spoke else ""
    except OSError:
        return ""


def _speaks_http(host: str, port: int) -> bool:
    """Whether it answers what nobody has encrypted; to an attempt to encrypt it hangs up."""
    with socket.create_connection((host, port), _PATIENCE_S) as connection:
        connection.settimeout(_PATIENCE_S)
        connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"


def _of_tls(connection: socket.socket, host: str, tls: Tls) -> str:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.set_alpn_protocols(["h2"])
        if tls.certificate is not None:
            context.load_cert_chain(str(tls.certificate), str(tls.key))
    except (OSError, ssl.SSLError) as error:
        return f"was not asked: our certificates cannot be used ({error})"
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            wrapped.recv(1)  # with TLS 1.3 what it thinks of our certificate comes after
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"is not who it should be: {error.verify_message}"
    except ssl.SSLError as error:
        alert = error.reason or ""
        if tls.certificate is None and "CERTIFICATE" in alert:
            alert = "TLSV13_ALERT_CERTIFICATE_REQUIRED"  # Go says "bad" of none, too
        return _TLS_ALERTS.get(alert, "")
    except OSError:
        return ""
