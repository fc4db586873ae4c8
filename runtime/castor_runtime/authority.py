"""An authority of one's own: who has a certificate of it may talk to a job's agents and its store.

For those without an authority of their own; any other's certificates do as well.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 3650
"""Certificates last so long unless somebody says otherwise: a job outlives its maker's calendar."""

_SKEW = timedelta(hours=1)
"""A host whose clock is behind must not find a certificate that is not valid yet."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Write both; the key for its owner alone."""
        _write(key, self.key, 0o600)
        _write(certificate, self.certificate, 0o644)


class Authority:
    """Signs certificates.

    Args:
        key: its private key.
        certificate: its own.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def new(cls, name: str, days: int = DAYS) -> Authority:
        """Make one that nobody trusts yet."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        made = (
            _valid(x509.CertificateBuilder(), days)
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(_key_usage(signs=True), critical=True)
        )
        return cls(key, made.sign(key, hashes.SHA256()))

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Authority:
        """Read one that was written.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file holds something else.
        """
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError(  # noqa: TRY004 - of a file, not of an argument
                f"{key} holds no key that `castor certs init` has written"
            )
        return cls(private, x509.load_pem_x509_certificate(certificate.read_bytes()))

    def own(self) -> Issued:
        """Return its own certificate, which all trust, and its key, which makes others."""
        return Issued(self._certificate.public_bytes(serialization.Encoding.PEM), _pem(self._key))

    def issue(self, *hosts: str, days: int = DAYS) -> Issued:
        """Return a certificate for whoever is reached by these names and addresses, on both ends.

        Args:
            hosts: names or IP addresses, the first one its common name.
            days: how long it is valid; 0 or less: it has expired already.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        authority = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        made = (
            _valid(x509.CertificateBuilder(), days)
            .subject_name(_named(hosts[0]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority),
                critical=False,
            )
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False
            )
        )
        signed = made.sign(self._key, hashes.SHA256())
        return Issued(signed.public_bytes(serialization.Encoding.PEM), _pem(key))


def _valid(builder: x509.CertificateBuilder, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days) if days > 0 else now - timedelta(minutes=1)
    return builder.not_valid_before(now - _SKEW).not_valid_after(end)


def _named(name: str) -> x509.Name:
    # A common name has at most 64 characters; the names that count are the alternative ones.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that had its mode from its first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
