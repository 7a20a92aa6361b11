"""Ed25519 signatures of releases, approvals and receipts: creates them, and finds the trusted key that made one.

Owns the format of keys and signatures. Does not own the signed content (`observatory.delivery.releases`,
`observatory.delivery.approvals` and `observatory.backups.receipts`) nor the trusted keys (settings).

Keys have OpenSSL's formats: a private key is PKCS #8 in PEM (`openssl genpkey -algorithm ed25519`), a public key is the
line that `openssl pkey -pubout` prints between its markers, a SubjectPublicKeyInfo (RFC 8410) in base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from observatory.errors import ObservatoryError
from observatory.settings.public_keys import PUBLIC_KEY_PREFIX, public_key_der

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RELEASE = "application/vnd.llm-observatory.release+json"
APPROVAL = "application/vnd.llm-observatory.approval+json"  # a signature of one type is not valid for another
RECEIPT = "application/vnd.llm-observatory.restore-receipt+json"
KEY_ID_DIGITS = 16  # of the SHA-256 of the public key; the id finds the key, it proves nothing


class SignatureError(ObservatoryError):
    """A key cannot be used, or a signature is not of a trusted key."""


class Signature(BaseModel):
    """A signature in base64, with the id of its key."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    key_id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{KEY_ID_DIGITS}}}$")]
    value: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]  # 64 bytes


def key_id(public_key: str) -> str:
    """Return the id of a public key in signatures."""
    return hashlib.sha256(public_key_der(public_key)).hexdigest()[:KEY_ID_DIGITS]


def make_private_key() -> str:
    """Return a new private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - 30 ms
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode("ascii")


def public_key(private_key: str) -> str:
    """Return the public key of a private one.

    Raises:
        SignatureError: it is not an Ed25519 key without a passphrase.
    """
    raw = _loaded(private_key).public_key().public_bytes_raw()
    return base64.b64encode(PUBLIC_KEY_PREFIX + raw).decode("ascii")


def sign(payload: bytes, private_key: str, *, kind: str = RELEASE) -> Signature:
    """Return the signature of a payload of a kind, `RELEASE`, `APPROVAL` or `RECEIPT`.

    Raises:
        SignatureError: the key is not an Ed25519 key without a passphrase.
    """
    value = _loaded(private_key).sign(_encoded(payload, kind))
    return Signature(key_id=key_id(public_key(private_key)), value=base64.b64encode(value).decode("ascii"))


def signer(payload: bytes, signature: Signature, trusted: Mapping[str, str], *, kind: str = RELEASE) -> str:
    """Return the name of the trusted key that signed a payload.

    Args:
        payload: the signed content.
        signature: of the payload.
        trusted: public keys by name.
        kind: of the payload.

    Raises:
        SignatureError: the key is not trusted, or the signature is not valid for the payload.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - 30 ms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    found = next((name for name, key in trusted.items() if key_id(key) == signature.key_id), None)
    if found is None:
        raise SignatureError(f"signed with key {signature.key_id}, which is not trusted (trusted: {_names(trusted)})")
    key = Ed25519PublicKey.from_public_bytes(public_key_der(trusted[found])[len(PUBLIC_KEY_PREFIX) :])
    try:
        key.verify(base64.b64decode(signature.value), _encoded(payload, kind))
    except InvalidSignature:
        raise SignatureError(
            f"the signature of key {found} is not valid for this content: one of the two was changed"
        ) from None
    return found


def _names(trusted: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {key_id(key)}" for name, key in trusted.items()) or "none"


def _loaded(private_key: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - 30 ms
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise SignatureError(
            "not a private key in PEM without a passphrase: name the file that `openssl genpkey` wrote"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("not an Ed25519 key: create one with `openssl genpkey -algorithm ed25519 -out KEY.pem`")
    return key


def _encoded(payload: bytes, kind: str) -> bytes:
    """Return the payload in DSSE's pre-authentication encoding, which binds a signature to this type of payload."""
    name = kind.encode("ascii")
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)
