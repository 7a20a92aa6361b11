"""The settings of a stack's file, with those that `pulumi config set --secret` has stored decrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from observatory.engines import embedded
from observatory.settings import StackSettings, load_file


class StackPlaces(Protocol):
    """Where a stack's files are; a workspace has them."""

    @property
    def root(self) -> Path:
        """The directory of Pulumi.yaml."""

    @property
    def stack(self) -> str:
        """The stack's name."""

    @property
    def backend(self) -> Path:
        """The directory of the `file://` backend."""

    @property
    def passphrase_file(self) -> Path:
        """The file of the passphrase."""

    @property
    def config_file(self) -> Path:
        """The stack's configuration."""


def read_passphrase(file: Path) -> str:
    """Return the passphrase in a file, without the white space around it, as the Pulumi CLI does."""
    return file.read_text(errors="replace").strip()


def load_settings(places: StackPlaces) -> StackSettings:
    """Return the stack's settings, secrets decrypted with the stack's passphrase.

    Raises:
        SettingsError: the stack's configuration is wrong.
    """

    def decrypt(ciphertext: str) -> str:
        try:
            passphrase = read_passphrase(places.passphrase_file)
        except FileNotFoundError:
            raise embedded.PassphraseError(f"{places.passphrase_file} is missing") from None
        options = embedded.StackOptions(
            cwd=places.root,
            stack=places.stack,
            backend=places.backend,
            passphrase=passphrase,
            passphrase_file=places.passphrase_file,
        )
        return embedded.decrypt_setting(options, ciphertext)

    return load_file(places.config_file, decrypt)
