"""Signing, keeping and listing the releases that may be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from observatory.delivery.releases import Manifest, ReleaseRefusedError
from observatory.operations.signing import sign, trusted_keys
from observatory.platforms.stores import release_store
from observatory.settings import load_file
from observatory.workspace import Workspace


def sign_release(workspace: Workspace, artifact: Path, *, key: Path | None = None) -> Manifest:
    """Sign an artifact's manifest, which lies beside it, by a private key; None is the checkout's own.

    Raises:
        ReleaseError: artifact and manifest do not fit, or the key cannot be used.
    """
    return sign(workspace, artifact, _beside(artifact), key)


def add_release(workspace: Workspace, artifact: Path, manifest: Path | None = None) -> Manifest:
    """Keep a release, checked against its manifest, which lies beside the artifact unless it is given.

    Raises:
        ReleaseRefusedError: nobody whom the stack trusts has signed it, or the version is kept with other content.
        ReleaseError: one of the two is missing, or they do not fit.
    """
    settings = load_file(workspace.config_file)
    store, trusted = release_store(workspace, settings), trusted_keys(workspace, settings)
    return store.add(artifact, manifest or _beside(artifact), trusted)


def _beside(artifact: Path) -> Path:
    """Return where an artifact's manifest lies."""
    return artifact.with_name(artifact.name.removesuffix(".tar.gz") + ".json")


@dataclass(frozen=True, kw_only=True)
class KeptRelease:
    """A kept release; `signer` is the trusted key that signed it, or None, and then `objection` says why."""

    manifest: Manifest
    signer: str | None
    objection: str | None = None


def list_releases(workspace: Workspace) -> list[KeptRelease]:
    """Return the kept releases, and whether the stack may deploy them by their signatures."""
    settings = load_file(workspace.config_file)
    store, trusted = release_store(workspace, settings), trusted_keys(workspace, settings)
    return [_signed(store.manifest(version), trusted) for version in store.versions()]


def _signed(manifest: Manifest, trusted: Mapping[str, str]) -> KeptRelease:
    try:
        return KeptRelease(manifest=manifest, signer=manifest.signed_by(trusted))
    except ReleaseRefusedError as error:
        return KeptRelease(manifest=manifest, signer=None, objection=str(error))
