"""The release store holds signed artifacts that match their manifests, and nothing else."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from observatory.delivery import releases
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError, ReleaseStore, install, sign_release
from observatory.security.signatures import make_private_key, public_key

KEY = make_private_key()
TRUSTED = {"ci": public_key(KEY)}


def release(
    directory: Path, *, version: str = "v0.1.0", content: bytes = b"artifact", key: str | None = KEY
) -> tuple[Path, Path]:
    artifact, manifest = directory / "artifact.tar.gz", directory / "artifact.json"
    artifact.write_bytes(content)
    said = {"name": "storage-service", "version": version, "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps({**said, "schema_min": 3, "schema_max": 6, "inputs": "of the build"}))
    if key:
        sign_release(artifact, manifest, key)
    return artifact, manifest


def alter(manifest: Path, **changes: object) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "store")


def test_a_release_is_stored_with_its_manifest_and_signer(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    assert store.versions() == ("v0.1.0",)
    assert store.artifact("v0.1.0").read_bytes() == b"artifact"
    assert store.manifest("v0.1.0").schema_max == 6
    assert store.checked("v0.1.0", TRUSTED).signed_by(TRUSTED) == "ci"


def test_the_signature_covers_the_canonical_form_of_the_signed_fields(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    digest = hashlib.sha256(b"artifact").hexdigest()
    said = f'"name":"storage-service","schema_max":6,"schema_min":3,"sha256":"{digest}","version":"v0.1.0"'
    assert store.manifest("v0.1.0").payload == f"{{{said}}}".encode()


def test_the_signature_covers_the_optional_fields_that_a_manifest_has(store: ReleaseStore, tmp_path: Path) -> None:
    artifact, manifest = release(tmp_path, key=None)
    alter(manifest, start_seconds=90, metrics=["storage_service_info", "go_goroutines"])
    sign_release(artifact, manifest, KEY)
    stored = store.add(artifact, manifest, TRUSTED)
    assert (stored.start_seconds, stored.metrics) == (90, ("storage_service_info", "go_goroutines"))
    assert b'"metrics":["storage_service_info","go_goroutines"],"name":' in stored.payload
    assert b'"start_seconds":90' in stored.payload
    assert (store.start_seconds("v0.1.0"), store.start_seconds("v0.9.9")) == (90, None)
    alter(manifest, start_seconds=600)
    with pytest.raises(ReleaseRefusedError, match="was changed"):
        store.add(artifact, manifest, TRUSTED)


@pytest.mark.parametrize("field", [{"start_seconds": 0}, {"start_seconds": 601}, {"metrics": ["not a name"]}])
def test_an_invalid_optional_field_is_named(tmp_path: Path, field: dict[str, object]) -> None:
    artifact, manifest = release(tmp_path, key=None)
    alter(manifest, **field)
    with pytest.raises(ReleaseError, match=next(iter(field))):
        sign_release(artifact, manifest, KEY)


def test_an_artifact_that_differs_from_its_manifest_is_neither_signed_nor_stored(
    store: ReleaseStore, tmp_path: Path
) -> None:
    artifact, manifest = release(tmp_path)
    artifact.write_bytes(b"altered")
    with pytest.raises(ReleaseError, match=r"SHA-256 is .*, expected "):
        store.add(artifact, manifest, TRUSTED)
    with pytest.raises(ReleaseError, match=r"SHA-256 is .*, expected "):
        sign_release(artifact, manifest, KEY)
    assert store.versions() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "v0.2.0"},
        {"schema_min": 1},
        {"schema_max": 99},
        {"name": "other"},
        {"start_seconds": 600},
        {"metrics": []},
        {"sha256": hashlib.sha256(b"evil").hexdigest()},
    ],
)
def test_a_manifest_that_was_changed_after_it_was_signed_is_refused(
    store: ReleaseStore, tmp_path: Path, changes: dict[str, object]
) -> None:
    artifact, manifest = release(tmp_path)
    alter(manifest, **changes)
    if "sha256" in changes:
        artifact.write_bytes(b"evil")
    with pytest.raises(ReleaseRefusedError, match="was changed"):
        store.add(artifact, manifest, TRUSTED)
    assert store.versions() == ()


def test_a_release_without_a_trusted_signature_is_refused(store: ReleaseStore, tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefusedError, match=r"is not signed: .*`observatory release sign`"):
        store.add(*release(tmp_path, key=None), TRUSTED)
    with pytest.raises(ReleaseRefusedError, match=r"which is not trusted \(trusted: ci .*`delivery.trusted_keys`"):
        store.add(*release(tmp_path, key=make_private_key()), TRUSTED)
    assert store.versions() == ()


def test_a_stored_version_is_never_replaced_by_another_artifact(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    with pytest.raises(ReleaseRefusedError, match=r"v0\.1\.0 is stored with another artifact"):
        store.add(*release(tmp_path, content=b"another"), TRUSTED)
    assert store.artifact("v0.1.0").read_bytes() == b"artifact"


def test_adding_a_release_again_replaces_its_signature_and_repairs_the_artifact(
    store: ReleaseStore, tmp_path: Path
) -> None:
    store.add(*release(tmp_path), TRUSTED)
    store.artifact("v0.1.0").unlink()
    later = make_private_key()
    store.add(*release(tmp_path, key=later), {"later": public_key(later)})
    assert store.checked("v0.1.0", {"later": public_key(later)}).version == "v0.1.0"
    with pytest.raises(ReleaseRefusedError, match="not trusted"):
        store.checked("v0.1.0", TRUSTED)


def test_changes_in_the_store_are_found_before_a_deployment(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    kept = store.directory / "v0.1.0.json"
    signed = kept.read_text()
    alter(kept, schema_min=0)
    with pytest.raises(ReleaseRefusedError, match="was changed"):
        store.checked("v0.1.0", TRUSTED)
    alter(kept, signature=None)
    with pytest.raises(ReleaseRefusedError, match="is not signed"):
        store.checked("v0.1.0", TRUSTED)
    kept.write_text(signed)
    store.artifact("v0.1.0").write_bytes(b"evil")
    with pytest.raises(ReleaseError, match=r"SHA-256 is .*, expected "):
        store.checked("v0.1.0", TRUSTED)


def test_a_removed_version_can_be_added_with_another_artifact(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    store.remove("v0.1.0")
    assert store.versions() == ()
    store.add(*release(tmp_path, content=b"another"), TRUSTED)
    assert store.artifact("v0.1.0").read_bytes() == b"another"


def test_the_error_of_a_missing_version_names_the_stored_ones(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    with pytest.raises(ReleaseError, match=r"v9\.9\.9 is not in the store \(stored: v0\.1\.0\)"):
        store.manifest("v9.9.9")


def test_a_malformed_version_is_refused(store: ReleaseStore, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="not a release manifest"):
        store.add(*release(tmp_path, version="latest", key=None), TRUSTED)


def archive(directory: Path, *members: str) -> tuple[Path, str]:
    file = directory / "release.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for member in members:
            entry = tarfile.TarInfo(member)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"ok"))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_release_is_unpacked(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "bin/storage-service", "lib/module.py")
    install(artifact, sha256=digest, target=tmp_path / "releases" / "v0.1.0")
    assert (tmp_path / "releases" / "v0.1.0" / "lib" / "module.py").read_text() == "ok"


def test_an_installed_release_is_not_unpacked_again(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "a")
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")
    artifact.unlink()
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")


@pytest.mark.parametrize("member", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_with_a_path_outside_of_it_leaves_nothing(tmp_path: Path, member: str) -> None:
    artifact, digest = archive(tmp_path, "inside", member)
    target = tmp_path / "releases" / "v0.1.0"
    with pytest.raises(ReleaseError, match="not a release archive"):
        install(artifact, sha256=digest, target=target)
    assert list(target.parent.iterdir()) == []


def test_of_two_processes_that_unpack_a_release_at_once_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, digest = archive(tmp_path, "a")
    target = tmp_path / "releases" / "v0.1.0"
    unpack = releases._unpack

    def unpack_second(artifact: Path, directory: Path) -> None:
        monkeypatch.setattr(releases, "_unpack", unpack)
        install(artifact, sha256=digest, target=target)
        unpack(artifact, directory)

    monkeypatch.setattr(releases, "_unpack", unpack_second)
    install(artifact, sha256=digest, target=target)
    assert [path.name for path in target.parent.iterdir()] == ["v0.1.0"]
    assert (target / "a").read_text() == "ok"


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "release.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        link = tarfile.TarInfo("lib")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(ReleaseError, match="'lib' is not a plain file"):
        install(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), target=tmp_path / "v0.1.0")


def test_the_error_of_a_missing_artifact_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"gone\.tar\.gz: cannot be read"):
        install(tmp_path / "gone.tar.gz", sha256="a" * 64, target=tmp_path / "v0.1.0")
