"""Files encrypted with age (https://age-encryption.org/v1), which the program `age` decrypts, too.

Every 64 KiB are authenticated: a changed, cut or foreign file is found, at its end at the latest. Does not own what the
files contain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from observatory.errors import REFUSED, ObservatoryError

MAGIC = b"age-encryption.org/v1\n"
BLOCK = 1024 * 1024
PASSPHRASE_FILE_BYTES = 1024 * 1024  # such files hold keys


class EncryptedFileError(ObservatoryError):
    """A file is not encrypted with age, or is cut or changed, or was encrypted for another key; nothing was changed."""

    exit_code = REFUSED


def make_key() -> str:
    """Return a new private key, as `age-keygen` writes one."""
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    return f"{pyrage.x25519.Identity.generate()}\n"


@contextmanager
def encrypting(target: IO[bytes], key: str) -> Iterator[IO[bytes]]:
    """Yield a file; what the block writes to it is in `target` at the end of the block, encrypted for a private key.

    Raises:
        EncryptedFileError: the key is no private key of age.
        OSError: `target` cannot be written.
    """
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    recipient = _identity(key).to_public()
    with ThreadPoolExecutor(1) as pool:
        source, sink = _pipe()
        done = pool.submit(_work, pyrage.encrypt_io, source, target, [recipient], pipe=source)
        try:
            with sink:
                yield sink
            done.result()
        except (BrokenPipeError, pyrage.EncryptError):  # the message of the second has the cause of the first
            raise OSError(str(done.exception())) from None


@contextmanager
def decrypting(file: Path, key: str) -> Iterator[IO[bytes]]:
    """Yield the decrypted content of a file. What the block has not read is read and authenticated at its end.

    Raises:
        EncryptedFileError: see the class; the block may have read the first part by then.
        OSError: the file cannot be read.
    """
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    identity = _identity(key)
    with file.open("rb") as source, ThreadPoolExecutor(1) as pool:
        _check_magic(source.read(len(MAGIC)), file)
        source.seek(0)
        content, sink = _pipe()
        done = pool.submit(_work, pyrage.decrypt_io, source, sink, [identity], pipe=sink)
        try:
            with content:
                yield content
                while content.read(BLOCK):
                    pass
        finally:  # a cut file is the cause of whatever the block makes of its content
            error = done.exception()
            if isinstance(error, pyrage.DecryptError) or (isinstance(error, OSError) and error.errno is None):
                raise _undecryptable(file, error) from None
        done.result()


def encrypt_with_passphrase(content: bytes, passphrase: str) -> bytes:
    """Return content encrypted with a passphrase, which scrypt makes slow to guess."""
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    return bytes(pyrage.passphrase.encrypt(content, passphrase))


def decrypt_with_passphrase(file: Path, passphrase: str) -> bytes:
    """Return the content of a file.

    Raises:
        EncryptedFileError: see the class.
        OSError: the file cannot be read.
    """
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    with file.open("rb") as source:
        content = source.read(PASSPHRASE_FILE_BYTES)
    _check_magic(content, file)
    try:
        return bytes(pyrage.passphrase.decrypt(content, passphrase))
    except (pyrage.DecryptError, OSError) as error:
        raise _undecryptable(file, error) from None


def _work(
    work: Callable[..., None], source: IO[bytes], target: IO[bytes], keys: Sequence[Any], *, pipe: IO[bytes]
) -> None:
    """Encrypt or decrypt, and then close the pipe, so that its other end neither waits nor fills it."""
    with pipe:
        work(source, target, keys)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read_end, write_end = os.pipe()
    return os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb")


def _identity(key: str) -> Any:
    import pyrage  # noqa: PLC0415 - only where files are encrypted

    try:
        return pyrage.x25519.Identity.from_str(key.strip())
    except pyrage.IdentityError:
        raise EncryptedFileError("the key is no private key of age, a line that starts with AGE-SECRET-KEY-1") from None


def _check_magic(start: bytes, file: Path) -> None:
    if not start.startswith(MAGIC):
        raise EncryptedFileError(f"{file} is not encrypted with age", remedy="Name a file that this command has made.")


def _undecryptable(file: Path, error: Exception) -> EncryptedFileError:
    return EncryptedFileError(
        f"{file} cannot be decrypted: {error}",
        remedy="It was encrypted with another key or passphrase, or it is cut or changed. Use another copy or key.",
    )
