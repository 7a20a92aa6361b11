"""The file with the keys that a lost machine needs besides a copy of a backup repository.

It is encrypted with a passphrase, in age's format; one that `down` keeps in the checkout is not. It has only what is
made once and never changes, so that it does not age: the `up` after a recovery makes new logins and certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.backups.tool import BackupError
from observatory.errors import REFUSED
from observatory.files.atomic import creating
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import REPOSITORIES, cipher_file, passphrase_in
from observatory.runtime import Sandbox
from observatory.security.age_files import EncryptedFileError, decrypt_with_passphrase, encrypt_with_passphrase

LEAST_CHARACTERS = 12  # of a passphrase
REMEDY = "Name a file that `observatory backup key export` has written."


class KeyFileError(BackupError):
    """The file of the keys cannot be written or used; nothing was changed."""

    exit_code = REFUSED


class MachineKeys(BaseModel):
    """What the file has.

    Attributes:
        format: of the file.
        stack: full name of the stack, as `project/local`.
        created: when the file was made.
        repositories: passphrases of the backup repositories by number.
        dump_key: decrypts the checkout's dumps; None where there is none.
        signing_key: signs the checkout's own releases, approvals and receipts; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    format: Literal[1] = 1
    stack: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    repositories: Mapping[int, str] = Field(min_length=1)
    dump_key: str | None
    signing_key: str | None


def repository_passphrases(sandbox: Sandbox) -> dict[int, str]:
    """Return the passphrases of a stack's backup repositories by number; none where it was never up."""
    files = {number: sandbox.host_path(cipher_file(Paths(), number)) for number in REPOSITORIES}
    texts = {number: file.read_text(encoding="utf-8") for number, file in files.items() if file.exists()}
    found = {number: passphrase_in(text, number) for number, text in texts.items()}
    return {number: passphrase for number, passphrase in found.items() if passphrase}


def check_passphrase(passphrase: str) -> None:
    """Check that a passphrase is not too short to protect the keys.

    Raises:
        KeyFileError: it is.
    """
    if len(passphrase) < LEAST_CHARACTERS:
        raise KeyFileError(
            f"the passphrase of the keys has {len(passphrase)} characters, and needs at least {LEAST_CHARACTERS}",
            remedy="It protects every backup. Use several random words.",
        )


def write_keys(file: Path, keys: MachineKeys, passphrase: str) -> None:
    """Write a new file of mode 0600.

    Raises:
        KeyFileError: the passphrase is too short, or the file exists or cannot be written.
    """
    check_passphrase(passphrase)
    content = encrypt_with_passphrase(keys.model_dump_json(indent=1).encode(), passphrase)
    try:
        with creating(file) as target:
            target.write(content)
    except FileExistsError:
        raise KeyFileError(f"{file} exists, and an export overwrites nothing", remedy="Name another file.") from None
    except OSError as error:
        raise KeyFileError(f"{file} cannot be written: {error}", remedy="Name another file.") from error


def is_encrypted(file: Path) -> bool:
    """Return whether a file is encrypted, unlike one that `down` has left."""
    try:
        with file.open("rb") as content:
            return content.read(1) != b"{"
    except OSError:
        return True


def read_keys(file: Path, passphrase: str) -> MachineKeys:
    """Return the keys in a file; the passphrase does not matter where the file is not encrypted.

    Raises:
        KeyFileError: it cannot be read, is no such file, or the passphrase is wrong.
    """
    try:
        content = decrypt_with_passphrase(file, passphrase) if is_encrypted(file) else file.read_bytes()
        return MachineKeys.model_validate_json(content)
    except OSError as error:
        raise KeyFileError(f"the key file {file} cannot be read: {error.strerror}", remedy=REMEDY) from None
    except EncryptedFileError as error:
        raise KeyFileError(f"the key file cannot be used: {error}") from None
    except ValidationError:
        raise KeyFileError(f"{file} has no keys that this version can read", remedy=REMEDY) from None
