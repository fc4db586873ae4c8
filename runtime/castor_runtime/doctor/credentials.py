"""What this host's agent is to prove itself with: its secret, or its certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from castor_configs.errors import InputError
from castor_runtime.agent.admission import credentials_of
from castor_runtime.doctor.finding import Finding, bad, good, note
from castor_runtime.transport import Credentials

SOON: Final = timedelta(days=30)


def credentials(
    secret: Path | None,
    tls: tuple[Path | None, Path | None, Path | None],
    listen: str,
    now: datetime | None = None,
) -> tuple[Finding, Credentials | None]:
    """Look at the files, and return what they prove, None if nothing.

    Args:
        secret: file of the job's secret.
        tls: files of the authority, the certificate and its key.
        listen: address that a certificate has to name; "": none is known.
        now: the time; None: this host's.
    """
    what = "credentials"
    if secret is None and not any(tls):
        advice = "give --secret FILE, or the --tls files"
        return note(what, "none were given, so agents cannot be asked", advice), None
    try:
        found = credentials_of(secret, *tls, listen=listen)
    except InputError as error:
        return bad(what, error.message, "see docs/runtime.md, 5"), None
    if tls[1] is not None:
        certificate = x509.load_pem_x509_certificate(tls[1].read_bytes())
        left = certificate.not_valid_after_utc - (now or datetime.now(UTC))
        if left < SOON:
            text = f"{tls[1]} expires in {left.days} days"
            return note(what, text, "castor certs add makes a new one"), found
        return good(what, f"{tls[1]}, for {left.days} days more"), found
    assert secret is not None
    if secret.stat().st_mode & 0o077:
        text = f"{secret} can be read by others than its owner"
        return bad(what, text, f"chmod 600 {secret}"), found
    return good(what, str(secret)), found
