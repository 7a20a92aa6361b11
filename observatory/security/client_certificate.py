"""The client certificate with which commands and probes connect to the stack's monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """The file with the certificate and its key, and the file of the authority that verifies servers; both PEM."""

    certificate: Path
    authority: Path

    def context(self) -> ssl.SSLContext:
        """Return a context that shows the certificate and trusts only the authority.

        Raises:
            OSError: a file cannot be read.
        """
        import ssl  # noqa: PLC0415 - only for connections that need it

        made = ssl.create_default_context(cafile=str(self.authority))
        made.load_cert_chain(self.certificate)
        return made
