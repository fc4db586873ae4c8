"""Who a certificate is for: compared with whom is spoken to, and told in a sentence.

Agents are known by their addresses. Who dials compares the certificate that it is shown with the
address that it dialled, and who is dialled with the address that the other side comes from (an
agent dials from the address that it listens at). So what is stolen from one host is of no use on
another.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Any, Final

NAME_AGAIN: Final = "have one made that names it: `castor certs add NAME,ADDRESS`"

_MISMATCH: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
_FOREIGN: Final = (18, 19, 20, 21)  # of another authority, or signed by nobody that is known

_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "this side's certificate is of another authority (unknown ca)",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that this side's certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take this side's certificate",
}


def names_in(certificate: Any) -> list[str]:
    """Return the names and addresses that a certificate is for, as `getpeercert` has it."""
    return [str(name).strip() for _, name in (certificate or {}).get("subjectAltName", ())]


def is_for(names: list[str], address: str) -> bool:
    """Say whether one of the names is that address."""
    wanted = _address(address)
    return wanted is not None and any(_address(name) == wanted for name in names)


def not_for(names: list[str], address: str) -> str:
    """Return what is to be said of a certificate that is not for an address."""
    return f"is for {', '.join(names) or 'nobody'} and not for {address}"


def stranger(connection: socket.socket) -> str:
    """Return why who has connected is not whom its certificate names; "" if it is, or no TLS."""
    if not isinstance(connection, ssl.SSLSocket):
        return ""
    names, address = names_in(connection.getpeercert()), str(connection.getpeername()[0])
    if is_for(names, address):
        return ""
    return f"its certificate {not_for(names, address)}, which it comes from; {NAME_AGAIN}"


def reason(error: ssl.SSLError, address: str) -> str:
    """Return in a sentence why TLS did not come to be with the peer at `address`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code in _MISMATCH:
            return f"its certificate is not for {address}, where it was reached; {NAME_AGAIN}"
        if code == _EXPIRED:
            return "its certificate has expired"
        if code == _NOT_YET:
            return "its certificate is not valid yet: compare the hosts' clocks"
        if code in _FOREIGN:
            return f"certificate verify failed: it is of another authority ({error.verify_message})"
    return _ALERTS.get(error.reason or "", str(error))


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
