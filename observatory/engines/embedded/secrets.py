"""Pulumi's passphrase secrets provider: AES-256-GCM under a PBKDF2 key.

Follows sdk/go/common/resource/config/crypt.go and pkg/secrets/passphrase in Pulumi's source.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.engines.embedded.errors import PassphraseError, StateError
from observatory.engines.embedded.values import UNKNOWN

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_ITERATIONS = 1_000_000  # fixed by the format
_KEY_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 8
_SALT = re.compile(r"v1:([A-Za-z0-9+/]+=*):(v1:.+)")  # the salt, and a probe that verifies the passphrase
_PROBE = "pulumi"


class Crypter:
    """Encrypts and decrypts a stack's secret values.

    Deriving the key takes a quarter of a second, so it starts in a thread when the object is created.
    """

    def __init__(self, passphrase: str | None, salt: str | None = None, *, file: Path | None = None) -> None:
        """Start deriving the key.

        Args:
            passphrase: The stack's passphrase, or None to decrypt every secret as UNKNOWN.
            salt: ``encryptionsalt`` as Pulumi writes it (``v1:salt:probe``), or None to generate a new one.
            file: The file that has the passphrase, for errors; None where the environment has it.

        Raises:
            StateError: the salt is malformed.
        """
        self._salt, self._probe = base64.b64encode(os.urandom(_SALT_BYTES)).decode(), ""
        if salt is not None:
            match = _SALT.fullmatch(salt)
            if not match:
                raise StateError(
                    f"malformed encryption salt {salt!r}, expected v1:SALT:PROBE; restore it from a backup"
                )
            self._salt, self._probe = match.groups()
        self._file = file
        self._is_blind, thread = passphrase is None, ThreadPoolExecutor(1)
        if passphrase is not None:
            self._cipher = thread.submit(_cipher, passphrase.encode(), base64.b64decode(self._salt))
        thread.shutdown(wait=False)

    @property
    def salt(self) -> str:
        """The salt and the probe as the ``encryptionsalt`` setting holds them."""
        self._probe = self._probe or self.encrypt(_PROBE)
        return f"v1:{self._salt}:{self._probe}"

    def verify(self) -> None:
        """Check the passphrase against the salt's probe, if it has one.

        Raises:
            PassphraseError: the passphrase is wrong.
        """
        if self._probe:
            self.decrypt(self._probe)

    def encrypt(self, text: str) -> str:
        """Encrypt one value."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.result().encrypt(nonce, text.encode(), None)
        return f"v1:{base64.b64encode(nonce).decode()}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, ciphertext: str) -> str:
        """Decrypt one value.

        Raises:
            PassphraseError: it was encrypted with another passphrase.
            StateError: it is damaged.
        """
        if self._is_blind:
            return UNKNOWN
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - slow; the thread has imported it by now

        try:
            version, nonce, sealed = ciphertext.split(":")
            if version != "v1":
                raise StateError(
                    f"a secret is encrypted in version {version!r}, and this engine supports v1; use a newer release"
                )
            return self._cipher.result().decrypt(base64.b64decode(nonce), base64.b64decode(sealed), None).decode()
        except InvalidTag:
            raise PassphraseError(wrong_passphrase(self._file)) from None
        except ValueError as error:
            raise StateError(
                f"a secret in the state is damaged: {error}; restore the state from its copy (.bak)"
            ) from error


def wrong_passphrase(file: Path | None) -> str:
    """Return the message of a passphrase that does not decrypt a stack's secrets."""
    if file is None:
        return (
            "the passphrase is wrong: it does not decrypt this stack's secrets; set PULUMI_CONFIG_PASSPHRASE or "
            "PULUMI_CONFIG_PASSPHRASE_FILE to the passphrase that the stack was created with"
        )
    return (
        f"{file} was changed: it does not have the passphrase that decrypts this stack's secrets. Restore the file "
        "from a copy. Without a copy, remove the file, then the stack with all its data and backups with `observatory "
        'down`; to recover the data afterwards, first see "A database that does not start" in docs/backups.md'
    )


def _cipher(passphrase: bytes, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - slow

    return AESGCM(hashlib.pbkdf2_hmac("sha256", passphrase, salt, _ITERATIONS, _KEY_BYTES))
