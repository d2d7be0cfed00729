"""Certificates of a test's own authorities, made with openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_NEW_KEY = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"


class Authority:
    """Signs certificates.

    Args:
        folder: Where its files are.
        name: Its own.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.certificate, self._key = self._make(name, [f"/CN={name}"])

    def issue(self, name: str, *others: str) -> tuple[str, str]:
        """A certificate for DNS names, signed by this authority, and its key."""
        names = ",".join(f"DNS:{each}" for each in (name, *others))
        signed = ["-addext", f"subjectAltName={names}", "-CA", self.certificate, "-CAkey", self._key]
        # not its own authority, which verifiers of a chain would mind
        return self._make(name, [f"/CN={name}", *signed, "-addext", "basicConstraints=critical,CA:FALSE"])

    def trust(self) -> ssl.SSLContext:
        """A client's context that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.certificate)

    def _make(self, name: str, subject: list[str]) -> tuple[str, str]:
        certificate, key = (str(self._folder / f"{name}.{kind}") for kind in ("crt", "key"))
        command = [*_NEW_KEY.split(), "-keyout", key, "-out", certificate, "-subj", *subject]
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key
