"""Signing a release with a private key: a given one, or the checkout's own.

Local stacks trust the checkout's own key, so that they come up without any other key.
"""

from __future__ import annotations

from pathlib import Path

from observatory.delivery.releases import Manifest, ReleaseError, sign_release
from observatory.files.atomic import write_once
from observatory.security.signatures import make_private_key
from observatory.workspace import Workspace


def sign(workspace: Workspace, artifact: Path, manifest_file: Path, key_file: Path | None = None) -> Manifest:
    """Sign a release; without `key_file` with the checkout's own key, which is created where there is none.

    Raises:
        ReleaseError: the artifact does not match its manifest, or the key cannot be read or used.
    """
    if key_file is None:
        key_file = workspace.signing_key_file
        write_once(key_file, make_private_key)
    try:
        private_key = key_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{key_file}: the signing key cannot be read: {error}") from error
    return sign_release(artifact, manifest_file, private_key)
