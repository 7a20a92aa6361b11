import hashlib
import json
import platform
import re
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.files.cache import VARIABLE
from service import build as build_module
from service.build import BuildError, BuiltArtifact, build, main


@pytest.fixture(scope="module", autouse=True)
def small_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build with one small dependency of the real lock; test_artifact builds with all of them."""
    first = re.match(r"(.*\\\n)+.*\n", build_module._REQUIREMENTS.read_text())
    assert first
    small = tmp_path_factory.mktemp("lock") / "requirements.txt"
    small.write_text(first[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "_REQUIREMENTS", small)
        patch.setenv(VARIABLE, str(small.parent / "shared"))
        yield


@pytest.fixture(scope="module")
def artifact(small_lock: None, tmp_path_factory: pytest.TempPathFactory) -> BuiltArtifact:
    return build("v1.2.3-rc.1", tmp_path_factory.mktemp("dist"))


@pytest.mark.parametrize("version", ["v0.1.0", "v10.20.30", "v1.0.0-rc.1", "v1.0.0-alpha-2"])
def test_versions_are_semantic(version: str) -> None:
    assert build_module.VERSION_PATTERN.fullmatch(version)


@pytest.mark.parametrize(
    "version", ["0.1.0", "v1", "v1.2", "v01.2.3", "v1.2.3-", "v1.2.3+build", "latest", "../v1.2.3", ""]
)
def test_invalid_version_is_rejected(version: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"expected vMAJOR\.MINOR\.PATCH"):
        build(version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_architecture_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected x86_64 or aarch64"):
        build("v1.0.0", tmp_path, architecture="riscv64")


def test_manifest_describes_the_artifact(artifact: BuiltArtifact) -> None:
    machine = platform.machine()
    assert artifact.path.name == f"storage-service-v1.2.3-rc.1-{machine}.tar.gz"
    assert artifact.manifest_path.name == f"storage-service-v1.2.3-rc.1-{machine}.json"
    manifest = json.loads(artifact.manifest_path.read_text())
    assert manifest.pop("inputs")
    assert "storage_service_info" in manifest.pop("metrics")
    assert manifest == {
        "name": "storage-service",
        "version": "v1.2.3-rc.1",
        "file": artifact.path.name,
        "sha256": hashlib.sha256(artifact.path.read_bytes()).hexdigest(),
        "schema_min": 3,
        "schema_max": 8,
        "python": "3.13",
        "platform": f"linux-{machine}",
    }


def test_dependencies_are_installed_once_for_all_checkouts(
    artifact: BuiltArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_install_dependencies", None)
    again = build("v1.2.3-rc.1", tmp_path)
    assert again.manifest.sha256 == artifact.manifest.sha256


def test_dependencies_are_installed_for_one_build_if_the_shared_directory_cannot_be_used(
    artifact: BuiltArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "llm-observatory").touch()
    again = build("v1.2.3-rc.1", tmp_path / "dist")
    assert again.manifest.sha256 == artifact.manifest.sha256
    monkeypatch.setenv(VARIABLE, str(tmp_path / "llm-observatory"))
    with pytest.raises(BuildError, match=f"{VARIABLE}=.* cannot be used"):
        build("v1.2.4", tmp_path / "dist")


def test_no_temporary_files_remain(artifact: BuiltArtifact) -> None:
    assert set(artifact.path.parent.iterdir()) >= {artifact.path, artifact.manifest_path}
    assert not [path for path in artifact.path.parent.iterdir() if path.name.startswith(".")]


def test_entries_do_not_depend_on_the_build_machine(artifact: BuiltArtifact) -> None:
    with tarfile.open(artifact.path) as archive:
        members = archive.getmembers()
        release = archive.extractfile("lib/storage_service/release.json")
        assert release is not None
        assert json.load(release)["version"] == "v1.2.3-rc.1"
    names = [member.name for member in members]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert {(member.uid, member.gid, member.mtime, member.uname) for member in members} == {(0, 0, 0, "")}
    assert {oct(member.mode) for member in members if member.isfile()} <= {"0o644", "0o755"}
    assert all(member.isfile() or member.isdir() for member in members)
    assert not [name for name in names if name.endswith((".pyc", "/RECORD", "/INSTALLER", "/direct_url.json"))]
    assert "bin/storage-service" in names


def test_same_sources_make_the_same_bytes(artifact: BuiltArtifact, tmp_path: Path) -> None:
    again = build("v1.2.3-rc.1", tmp_path)
    assert not again.cached
    assert again.manifest == artifact.manifest


def test_up_to_date_artifact_is_not_rebuilt(artifact: BuiltArtifact) -> None:
    before = artifact.path.stat().st_mtime_ns
    again = build("v1.2.3-rc.1", artifact.path.parent)
    assert again.cached
    assert again.manifest == artifact.manifest
    assert artifact.path.stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["cut", "no manifest", "other inputs"])
def test_damaged_artifact_is_rebuilt(artifact: BuiltArtifact, tmp_path: Path, harm: str) -> None:
    path, manifest_path = tmp_path / artifact.path.name, tmp_path / artifact.manifest_path.name
    path.write_bytes(artifact.path.read_bytes()[: 1000 if harm == "cut" else None])
    content = artifact.manifest_path.read_text()
    manifests = {"no manifest": "", "other inputs": content.replace(artifact.manifest.inputs, "0")}
    manifest_path.write_text(manifests.get(harm, content))
    again = build("v1.2.3-rc.1", tmp_path)
    assert not again.cached
    assert again.manifest == artifact.manifest


def test_unreachable_registry_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    with pytest.raises(BuildError, match="package registry is not reachable"):
        build("v1.0.0", tmp_path / "dist")
    assert list((tmp_path / "dist").iterdir()) == []
    assert not list((tmp_path / "shared").glob("*dependencies-*"))


def test_missing_pip_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    venv.create(tmp_path / "venv", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    with pytest.raises(BuildError, match="has no pip"):
        build("v1.0.0", tmp_path / "dist")


def test_hash_mismatch_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("idna==3.10 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(build_module, "_REQUIREMENTS", requirements)
    with pytest.raises(BuildError, match="does not match its hash"):
        build("v1.0.0", tmp_path / "dist")


def test_lock_names_no_registry_and_pins_every_hash() -> None:
    lines = (Path(build_module.__file__).parent / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if "://" in line or "index" in line]
    assert len([line for line in lines if "==" in line]) > 10
    assert [line for line in lines if "==" in line and not line.endswith("\\")] == []


def test_command_reports_and_exits(
    artifact: BuiltArtifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "--output", str(artifact.path.parent), "--version"]
    monkeypatch.setattr(sys, "argv", [*command, "v1.2.3-rc.1"])
    assert main() == 0
    assert f"{artifact.path} is up to date (sha256 {artifact.manifest.sha256})" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "1.2.3"])
    assert main() == 1
    assert capsys.readouterr().err.startswith("build: version '1.2.3': expected")


def test_launcher_rejects_another_python(artifact: BuiltArtifact, tmp_path: Path) -> None:
    if sys.version_info[:2] == (3, 13):
        pytest.fail("this test needs an interpreter that is not the artifact's")
    with tarfile.open(artifact.path) as archive:
        archive.extractall(tmp_path, filter="data")
    ended = subprocess.run(
        [sys.executable, tmp_path / "bin/storage-service", "--version"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("storage-service: this build needs Python 3.13, not ")
