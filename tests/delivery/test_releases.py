"""The release store holds signed artifacts that match their manifests, and nothing else."""

import gzip
import hashlib
import json
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from observatory.delivery.releases import ReleaseError, ReleaseRefusedError, ReleaseStore, install, sign_release
from observatory.files import archive as archive_file
from observatory.security.signatures import make_private_key, public_key
from tests.support.bad_archives import BAD_ARCHIVES, MEMBER_BYTES, archive, bad_archive, digest_of, member, packed

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


def test_a_release_is_unpacked(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "bin/storage-service", "lib/module.py")
    install(artifact, sha256=digest, target=tmp_path / "releases" / "v0.1.0")
    assert (tmp_path / "releases" / "v0.1.0" / "lib" / "module.py").read_text() == "ok"


def test_an_installed_release_is_not_unpacked_again(tmp_path: Path) -> None:
    artifact, digest = archive(tmp_path, "a")
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")
    artifact.unlink()
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")


def test_of_two_processes_that_unpack_a_release_at_once_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, digest = archive(tmp_path, "a")
    target = tmp_path / "releases" / "v0.1.0"
    unpack = archive_file.unpack

    def unpack_second(file: BinaryIO, directory: Path) -> None:
        monkeypatch.setattr(archive_file, "unpack", unpack)
        install(artifact, sha256=digest, target=target)
        unpack(file, directory)

    monkeypatch.setattr(archive_file, "unpack", unpack_second)
    install(artifact, sha256=digest, target=target)
    assert [path.name for path in target.parent.iterdir()] == ["v0.1.0"]
    assert (target / "a").read_text() == "ok"


def test_the_error_of_a_missing_artifact_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"gone\.tar\.gz: cannot be read"):
        install(tmp_path / "gone.tar.gz", sha256="a" * 64, target=tmp_path / "v0.1.0")


@pytest.mark.parametrize("bad", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path: Path, bad: str) -> None:
    artifact = bad_archive(tmp_path, bad)
    with pytest.raises(ReleaseError, match=BAD_ARCHIVES[bad]):
        install(artifact, sha256=digest_of(artifact), target=tmp_path / "releases" / "v0.1.0")
    assert list((tmp_path / "releases").iterdir()) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("ends", [512, 1024, 20_000])
def test_an_archive_may_end_with_any_number_of_zeros(tmp_path: Path, ends: int) -> None:
    artifact, _ = archive(tmp_path, "a", "b")
    plain = gzip.decompress(artifact.read_bytes())
    artifact.write_bytes(gzip.compress(plain[: 2 * MEMBER_BYTES] + bytes(ends)))
    install(artifact, sha256=digest_of(artifact), target=tmp_path / "v0.1.0")
    assert (tmp_path / "v0.1.0" / "b").read_text() == "ok"


def test_owners_and_modes_of_an_archive_are_not_used(tmp_path: Path) -> None:
    root, inside = (member(name, type=tarfile.DIRTYPE, mode=0o777, uid=1234, gid=1234) for name in (".", "bin"))
    program = member("bin/service", mode=0o6777, uid=1234, gid=1234)
    artifact, digest = packed(tmp_path, root, inside, program, member("secret", mode=0o606))
    target = tmp_path / "v0.1.0"
    install(artifact, sha256=digest, target=target)
    modes = {path.relative_to(target).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*")}
    assert modes == {"bin": 0o755, "bin/service": 0o755, "secret": 0o644}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {path.stat().st_uid for path in (target, *target.rglob("*"))} == {tmp_path.stat().st_uid}


def test_an_artifact_that_is_replaced_after_its_check_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, digest = archive(tmp_path, "checked")
    (tmp_path / "other").mkdir()
    other, _ = archive(tmp_path / "other", "unchecked")
    unpack = archive_file.unpack

    def replaced(file: BinaryIO, directory: Path) -> None:
        other.replace(artifact)
        unpack(file, directory)

    monkeypatch.setattr(archive_file, "unpack", replaced)
    install(artifact, sha256=digest, target=tmp_path / "v0.1.0")
    assert [path.name for path in (tmp_path / "v0.1.0").iterdir()] == ["checked"]


@pytest.mark.parametrize("changed", ["artifact.tar.gz", "artifact.json"])
def test_a_release_that_changes_while_it_is_stored_replaces_nothing(
    store: ReleaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    given = release(tmp_path)
    store.add(*given, TRUSTED)
    copyfile = shutil.copyfile

    def copy_changed(source: Path, target: Path) -> None:
        if source.name == changed:
            source.write_bytes(source.read_bytes()[:-5])  # as by a download that starts again
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_changed)
    with pytest.raises(ReleaseError):
        store.add(*given, TRUSTED)
    assert store.checked("v0.1.0", TRUSTED).version == "v0.1.0"
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "v0.1.0.json", "v0.1.0.tar.gz"]


def test_a_manifest_under_the_name_of_another_version_is_not_used(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    for file in list(store.directory.glob("v0.1.0.*")):
        shutil.copy(file, store.directory / file.name.replace("v0.1.0", "v0.2.0"))
    with pytest.raises(ReleaseError, match=r"v0\.2\.0\.json: is the manifest of v0\.1\.0: add release v0\.2\.0 again"):
        store.checked("v0.2.0", TRUSTED)


DAMAGES = {
    "damaged": lambda text: text[: len(text) // 2],
    "that of another version": lambda text: text.replace("v0.1.0", "v0.2.0"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_adding_a_release_again_repairs_its_manifest(
    store: ReleaseStore, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    given = release(tmp_path)
    store.add(*given, TRUSTED)
    kept = store.directory / "v0.1.0.json"
    kept.write_text(damage(kept.read_text()))
    with pytest.raises(ReleaseError, match=r"v0\.1\.0\.json: .*: add release v0\.1\.0 again"):
        store.checked("v0.1.0", TRUSTED)
    with pytest.raises(ReleaseRefusedError, match=r"v0\.1\.0 is stored with another artifact"):
        store.add(*release(tmp_path, content=b"another"), TRUSTED)
    store.add(*release(tmp_path), TRUSTED)
    assert store.checked("v0.1.0", TRUSTED).version == "v0.1.0"


def test_a_version_whose_manifest_and_artifact_are_lost_can_be_added_again(store: ReleaseStore, tmp_path: Path) -> None:
    store.add(*release(tmp_path), TRUSTED)
    (store.directory / "v0.1.0.json").write_text("")
    store.artifact("v0.1.0").unlink()
    store.add(*release(tmp_path), TRUSTED)
    assert store.checked("v0.1.0", TRUSTED).version == "v0.1.0"
