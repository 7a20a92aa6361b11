"""Public keys in settings: Ed25519 keys as the line that `openssl pkey -pubout` prints between its markers.

That line is a SubjectPublicKeyInfo (RFC 8410) in base64.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import AfterValidator

PUBLIC_KEY_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: precedes the 32 bytes of the key
_PUBLIC_KEY_BYTES = 32


def public_key_der(public_key: str) -> bytes:
    """Return a public key in DER.

    Raises:
        ValueError: the text is not an Ed25519 public key.
    """
    try:
        der = base64.b64decode(public_key, validate=True)
    except binascii.Error:
        der = b""
    if not der.startswith(PUBLIC_KEY_PREFIX) or len(der) != len(PUBLIC_KEY_PREFIX) + _PUBLIC_KEY_BYTES:
        raise ValueError(
            "expected an Ed25519 public key: the line that `openssl pkey -in KEY.pem -pubout` prints between markers"
        )
    return der


def _checked_public_key(text: str) -> str:
    public_key_der(text)
    return text


PublicKey = Annotated[str, AfterValidator(_checked_public_key)]
