"""PostgreSQL's SCRAM-SHA-256 verifiers. A password set as a verifier never reaches the server or its log."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

ITERATIONS = 4096  # scram_iterations, PostgreSQL's default; RFC 7677 requires at least 4096
SALT_BYTES = 16  # SCRAM_DEFAULT_SALT_LEN in PostgreSQL's src/include/common/scram-common.h


def scram_verifier(password: str) -> str:
    """Return the verifier that pg_authid stores: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.

    Each call uses a new salt.

    Args:
        password: printable ASCII, which SASLprep (RFC 4013) does not change.

    Raises:
        ValueError: the password has other characters.
    """
    if not (password.isascii() and password.isprintable() and password):
        raise ValueError("the password must consist of printable ASCII characters")
    salt = secrets.token_bytes(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(value).decode() for value in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"
