"""Signing, storing and listing the releases that may be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.platforms import open_platform
from observatory.platforms.platform import Platform
from observatory.platforms.signing import sign
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.delivery.environment import Releases
    from observatory.platforms.contract.requirements import Finding


def sign_release(workspace: Workspace, artifact: Path, *, key: Path | None = None) -> Manifest:
    """Sign an artifact's manifest, in the same directory, with a private key; None is the checkout's own.

    Raises:
        ReleaseError: artifact and manifest do not match, or the key cannot be used.
    """
    return sign(workspace, artifact, _manifest_file(artifact), key)


def add_release(workspace: Workspace, artifact: Path, manifest: Path | None = None) -> Manifest:
    """Store a release after checking it against its manifest, by default the one in the same directory.

    Raises:
        ReleaseRefusedError: no trusted key signed it, or the version is stored with other content.
        ReleaseError: artifact or manifest is missing, or they do not match.
    """
    platform = open_platform(workspace)
    return platform.release_store.add(artifact, _manifest_file(artifact, manifest), platform.trusted_keys())


def check_release(
    workspace: Workspace,
    artifact: Path,
    manifest: Path | None = None,
    *,
    report: Reporter = silent,
) -> list[Finding]:
    """Run an artifact against the service contract on daemons of its own, without a stack; leaves nothing behind.

    Args:
        workspace: with the root filesystem, which is built if it is missing, and the migrations.
        artifact: the archive of the release.
        manifest: its manifest; None is the one in the same directory.
        report: gets the progress.

    Raises:
        ReleaseError: there is no such artifact, or no such manifest.
        RuntimeFault: this machine cannot run the daemons.
    """
    from observatory.platforms.contract.examination import examine  # noqa: PLC0415 - psycopg only where it is used

    manifest_file = _manifest_file(artifact, manifest)
    with task(report, "Debian 13 root filesystem") as show_detail:
        rootfs = workspace.ensure_rootfs(progress=lambda message, _fraction: show_detail(message))
    return examine(
        artifact,
        manifest_file,
        home=workspace.directory / "release-check",
        rootfs=rootfs,
        migrations=workspace.migrations,
        report=report,
    ).all


def _manifest_file(artifact: Path, given: Path | None = None) -> Path:
    """Return the given manifest of an artifact, by default the one in its directory.

    Raises:
        ReleaseError: there is no such artifact, or no such manifest.
    """
    if not artifact.is_file():
        raise ReleaseError(f"{artifact}: no such file: name the artifact that `make build` or your CI wrote")
    manifest = given or artifact.with_name(artifact.name.removesuffix(".tar.gz") + ".json")
    if not manifest.is_file():
        raise ReleaseError(f"{manifest}: no such file: fetch the manifest of {artifact.name} from where it was built")
    return manifest


@dataclass(frozen=True, kw_only=True)
class StoredRelease:
    """A stored release.

    Attributes:
        version: that it is stored as.
        manifest: of the release; None where it is damaged, or that of another version.
        signer: the trusted key that signed it, or None.
        objection: why there is no manifest or no signer; None where there are both.
    """

    version: str
    manifest: Manifest | None
    signer: str | None
    objection: str | None = None


def list_releases(workspace: Workspace) -> list[StoredRelease]:
    """Return the stored releases, and whether their signatures allow the stack to deploy them.

    A damaged manifest does not hide the other releases.
    """
    platform = open_platform(workspace)
    store, trusted = platform.release_store, platform.trusted_keys()
    return [_stored(store, version, trusted) for version in store.versions()]


def _stored(store: Releases, version: str, trusted: Mapping[str, str]) -> StoredRelease:
    manifest = None
    try:
        manifest = store.manifest(version)
        return StoredRelease(version=version, manifest=manifest, signer=manifest.signed_by(trusted))
    except ReleaseError as error:
        return StoredRelease(version=version, manifest=manifest, signer=None, objection=str(error))


def checked_release(platform: Platform, version: str) -> Manifest:
    """Return the manifest of a stored version after checking its artifact and signature again: stores can be changed.

    Raises:
        DeliveryRefusedError: it is not stored, is damaged, or no trusted key signed it.
    """
    try:
        return platform.release_store.checked(version, platform.trusted_keys())
    except ReleaseError as error:
        raise DeliveryRefusedError(str(error)) from error
