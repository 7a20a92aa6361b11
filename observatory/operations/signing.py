"""Who may sign a stack's releases, and the key by which a checkout signs what it builds itself.

That key is trusted by stacks on this machine alone, so that they come up without anybody else's key.
"""

from __future__ import annotations

from pathlib import Path

from observatory.delivery.releases import Manifest, ReleaseError, sign_release
from observatory.files.atomic import write_once
from observatory.security.signatures import make_private_key, public_key
from observatory.settings import StackSettings
from observatory.workspace import Workspace

OWN = "this-checkout"


def trusted_keys(workspace: Workspace, settings: StackSettings) -> dict[str, str]:
    """Return the public keys, by name, of whom one must have signed a release of the stack."""
    trusted: dict[str, str] = dict(settings.delivery.trusted_keys)
    if settings.platform == "local" and workspace.signing_key_file.exists():
        trusted[OWN] = public_key(workspace.signing_key_file.read_text())
    return trusted


def sign(workspace: Workspace, artifact: Path, manifest_file: Path, key_file: Path | None = None) -> Manifest:
    """Sign a release by a private key, or by the checkout's own, which is made where there is none yet.

    Raises:
        ReleaseError: the artifact is not what the manifest says, or the key cannot be read or used.
    """
    if key_file is None:
        key_file = workspace.signing_key_file
        write_once(key_file, make_private_key)
    try:
        private_key = key_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{key_file}: the signing key cannot be read: {error}") from error
    return sign_release(artifact, manifest_file, private_key)
