"""Certificates of one run, for an etcd that others could reach: only who has one is served."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from castor_runtime.stores.versions import EtcdStartError

_DAYS = "3650"


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder of mode 0700 with an authority of its own, a server's certificate and a client's.

    Attributes:
        folder: with ca.pem, server.pem, server.key, client.pem and client.key.
    """

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    @property
    def client(self) -> tuple[Path, Path]:
        """A client's certificate and key."""
        return self.folder / "client.pem", self.folder / "client.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's certificate and key."""
        return self.folder / "server.pem", self.folder / "server.key"

    def make(self, address: str) -> None:
        """Make them for a server at an IP address, unless they are there.

        Raises:
            EtcdStartError: the openssl program is missing or failed.
        """
        if self.server[0].exists():
            return
        if shutil.which("openssl") is None:
            raise EtcdStartError(
                "an emulated cluster's store needs certificates, and there is no openssl program "
                "to make them: install openssl"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", _DAYS]
        authority = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=castor store"]
        self._openssl("req", "-x509", *key, *authority)
        for name, use in (("client", "clientAuth"), ("server", "serverAuth,clientAuth")):
            (self.folder / f"{name}.ext").write_text(
                f"subjectAltName=IP:{address}\nextendedKeyUsage={use}\n", encoding="utf-8"
            )
            named = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"]
            self._openssl("req", *key[:-2], *named)
            signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", _DAYS]
            files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.ext"]
            self._openssl("x509", "-req", *signed, *files)
        (self.folder / "ca.key").unlink()  # nobody else is ever let in

    def client_context(self) -> ssl.SSLContext:
        """Return what a client speaks TLS with."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(*map(str, self.client))
        return context

    def etcd_options(self) -> dict[str, str]:
        """Return the options by which etcd serves nobody without a certificate."""
        certificate, key = map(str, self.server)
        options: dict[str, str] = {}
        for prefix in ("", "peer-"):
            options |= {
                f"{prefix}client-cert-auth": "true",
                f"{prefix}trusted-ca-file": str(self.ca),
                f"{prefix}cert-file": certificate,
                f"{prefix}key-file": key,
            }
        return options

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - no shell, and our own arguments
            ["openssl", *arguments],  # noqa: S607 - wherever it is installed
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise EtcdStartError(f"openssl {arguments[0]} failed: {done.stderr[-500:]}")
