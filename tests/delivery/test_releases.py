"""The release store keeps what its manifest describes, and nothing else."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from observatory.delivery.releases import ReleaseError, ReleaseStore, install


def release(
    directory: Path, *, version: str = "v0.1.0", content: bytes = b"artifact", digest: str = ""
) -> tuple[Path, Path]:
    artifact, manifest = directory / "artifact.tar.gz", directory / "artifact.json"
    artifact.write_bytes(content)
    sha256 = digest or hashlib.sha256(content).hexdigest()
    manifest.write_text(
        json.dumps({"name": "storage-service", "version": version, "sha256": sha256, "schema_min": 3, "schema_max": 6})
    )
    return artifact, manifest


def test_a_release_is_kept_with_its_manifest(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "store")
    store.add(*release(tmp_path))
    assert store.versions() == ("v0.1.0",)
    assert store.artifact("v0.1.0").read_bytes() == b"artifact"
    assert store.manifest("v0.1.0").schema_max == 6


def test_an_artifact_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "store")
    with pytest.raises(ReleaseError, match=r"SHA-256 is .*, expected b"):
        store.add(*release(tmp_path, digest="b" * 64))
    assert store.versions() == ()


def test_a_version_that_is_not_kept_is_named_with_those_that_are(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "store")
    store.add(*release(tmp_path))
    with pytest.raises(ReleaseError, match=r"v9\.9\.9 is not in the store \(kept: v0\.1\.0\)"):
        store.manifest("v9.9.9")


def test_a_version_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="not a release manifest"):
        ReleaseStore(tmp_path / "store").add(*release(tmp_path, version="latest"))


def archive(directory: Path, *members: str) -> tuple[Path, str]:
    file = directory / "release.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for member in members:
            entry = tarfile.TarInfo(member)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"ok"))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_release_is_unpacked_whole(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "bin/storage-service", "lib/module.py")
    install(artifact, sha256=digest, target=tmp_path / "releases" / "v0.1.0")
    assert (tmp_path / "releases" / "v0.1.0" / "lib" / "module.py").read_text() == "ok"


def test_an_installed_release_is_left_as_it_is(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "a")
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")
    artifact.unlink()
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")


@pytest.mark.parametrize("member", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_that_reaches_outside_leaves_nothing(tmp_path: Path, member: str) -> None:
    artifact, digest = archive(tmp_path, "inside", member)
    target = tmp_path / "releases" / "v0.1.0"
    with pytest.raises(ReleaseError, match="not a release archive"):
        install(artifact, sha256=digest, target=target)
    assert list(target.parent.iterdir()) == []


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "release.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        link = tarfile.TarInfo("lib")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(ReleaseError, match="'lib' is not a plain file"):
        install(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), target=tmp_path / "v0.1.0")


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"gone\.tar\.gz: cannot be read"):
        install(tmp_path / "gone.tar.gz", sha256="a" * 64, target=tmp_path / "v0.1.0")
