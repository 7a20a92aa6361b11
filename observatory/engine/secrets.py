"""Pulumi's passphrase secrets provider: AES-256-GCM under a PBKDF2 key.

Owns the crypter only (sdk/go/common/resource/config/crypt.go and pkg/secrets/passphrase in Pulumi's source). Where
the salt is kept, and which values are secret, is known elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from typing import TYPE_CHECKING

from observatory.engine.errors import PassphraseError, StateError
from observatory.engine.values import UNKNOWN

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_ITERATIONS = 1_000_000  # fixed by the format
_KEY_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 8
_PROBE = "pulumi"  # what the format encrypts beside the salt to recognise the passphrase


class Crypter:
    """Encrypts and decrypts a stack's secret values.

    The key takes a quarter of a second to derive, so it is derived in a thread from construction on.
    """

    def __init__(self, passphrase: str | None, salt: str | None = None) -> None:
        """Start deriving the key.

        Args:
            passphrase: The stack's passphrase, or None to decrypt every secret as UNKNOWN.
            salt: ``encryptionsalt`` as Pulumi writes it (``v1:salt:probe``), or None to make a new one.

        Raises:
            StateError: the salt is malformed.
        """
        self._passphrase, self._is_known = (passphrase or "").encode(), passphrase is not None
        self._probe: str | None = None
        self._verified = not self._is_known
        self._salt = os.urandom(_SALT_BYTES)
        if salt is not None:
            self._salt, self._probe = _parse_salt(salt)
        self._thread = threading.Thread(target=self._derive, daemon=True)
        if self._is_known:
            self._thread.start()

    @property
    def salt(self) -> str:
        """The salt and the probe as the ``encryptionsalt`` setting holds them."""
        if self._probe is None:
            self._probe = self.encrypt(_PROBE)
        return f"v1:{base64.b64encode(self._salt).decode()}:{self._probe}"

    def verify(self) -> None:
        """Check the passphrase against the salt's probe.

        Raises:
            PassphraseError: it is the wrong one.
        """
        if not self._verified and self._probe is not None and self.decrypt(self._probe) != _PROBE:
            raise PassphraseError(_WRONG)
        self._verified = True

    def _derive(self) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - beside the main thread

        key = hashlib.pbkdf2_hmac("sha256", self._passphrase, self._salt, _ITERATIONS, _KEY_BYTES)
        self._cipher = AESGCM(key)

    def _ready(self) -> AESGCM:
        self._thread.join()
        return self._cipher

    def encrypt(self, text: str) -> str:
        """Encrypt one value."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ready().encrypt(nonce, text.encode(), None)
        return f"v1:{base64.b64encode(nonce).decode()}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, ciphertext: str) -> str:
        """Decrypt one value.

        Raises:
            PassphraseError: it was encrypted with another passphrase.
            StateError: it is damaged.
        """
        if not self._is_known:
            return UNKNOWN
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - beside the main thread

        try:
            version, nonce, sealed = ciphertext.split(":")
            if version != "v1":
                raise StateError(f"a secret is encrypted in version {version!r}, known is v1; use a newer release")
            return self._ready().decrypt(base64.b64decode(nonce), base64.b64decode(sealed), None).decode()
        except InvalidTag:
            raise PassphraseError(_WRONG) from None
        except ValueError as error:
            raise StateError(f"a secret is damaged: {error}") from error


_WRONG = (
    "the passphrase is wrong: it does not decrypt this stack's secrets; set PULUMI_CONFIG_PASSPHRASE or "
    "PULUMI_CONFIG_PASSPHRASE_FILE to the passphrase that the stack was made with"
)


def _parse_salt(text: str) -> tuple[bytes, str]:
    version, _, rest = text.partition(":")
    salt, _, probe = rest.partition(":")
    try:
        decoded = base64.b64decode(salt, validate=True)
    except ValueError:
        decoded = b""
    if version != "v1" or not decoded or not probe:
        raise StateError(f"malformed encryption salt {text!r}, expected v1:SALT:PROBE")
    return decoded, probe
