"""Build the storage service's artifact: one versioned tarball for Debian's Python, and its manifest.

Owns the content of an artifact and its reproducibility: the same sources make the same bytes. Does not own signing or
storage of artifacts.

The tarball unpacks to `bin/storage-service` and `lib/`. `lib/` holds the service and every dependency, so the target
machine needs only the interpreter. `requirements.txt` beside this module pins the dependencies by hash.
"""

import argparse
import gzip
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from observatory.files.atomic import replacing, scratch_directory
from observatory.files.cache import CacheError, belongs_to_this_user, mark_used, remove_unused, shared_or
from observatory.files.locks import exclusive

NAME = "storage-service"
PYTHON = "3.13"  # Debian 13's
VERSION_PATTERN = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?")
ARCHITECTURES = ("x86_64", "aarch64")
# The platform tags that Debian 13's glibc (2.41) can load; pip does not derive the older ones from the newest.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")

_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "requirements.txt"
_PACKAGE = _HERE / "storage_service"
_INSTALL_RECORDS = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_PIP_TIMEOUT_S = 600

_LAUNCHER = f"""\
#!/usr/bin/env python3
import sys
from pathlib import Path

if sys.version_info[:2] != ({PYTHON.replace(".", ", ")}):
    sys.exit(f"{NAME}: this build needs Python {PYTHON}, not {{sys.version.split()[0]}}")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from storage_service.__main__ import main

sys.exit(main())
"""


class BuildError(Exception):
    """The artifact cannot be built. The message states the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Metadata that a deployment needs about an artifact, stored as JSON beside it.

    Attributes:
        name: name of the service.
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        file: name of the tarball.
        sha256: digest of the tarball, in hexadecimal.
        schema_min: lowest migration version that the service works with.
        schema_max: highest migration version that the service works with.
        metrics: names of the metrics that every instance has.
        python: interpreter that the dependencies are compiled for.
        platform: operating system and architecture.
        inputs: digest of all inputs of the build; the next build compares it to detect an up-to-date artifact.
    """

    name: str
    version: str
    file: str
    sha256: str
    schema_min: int
    schema_max: int
    metrics: list[str]
    python: str
    platform: str
    inputs: str

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Read a manifest, signed or not; returns None if the file is missing or has another format."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            document.pop("signature", None)
            return cls(**document)
        except (OSError, ValueError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True)
class BuiltArtifact:
    """An artifact on disk.

    Attributes:
        path: the tarball.
        manifest_path: its manifest.
        manifest: content of the manifest.
        cached: the artifact was already up to date and was not rebuilt.
    """

    path: Path
    manifest_path: Path
    manifest: Manifest
    cached: bool


def build(version: str, output: Path, *, architecture: str | None = None) -> BuiltArtifact:
    """Build the artifact of a version, unless an up-to-date one exists.

    Args:
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        output: directory for the tarball and the manifest; created if missing.
        architecture: target machine, as `uname -m` reports it; default: this machine.

    Raises:
        BuildError: the version or the architecture is not valid, or the dependencies cannot be downloaded.
    """
    architecture = architecture or platform.machine()
    _check(version, architecture)
    stem = f"{NAME}-{version}-{architecture}"
    path, manifest_path = output / f"{stem}.tar.gz", output / f"{stem}.json"
    inputs = _digest_of_inputs(version, architecture)
    present = Manifest.read(manifest_path)
    if present and present.inputs == inputs and path.is_file() and _sha256(path) == present.sha256:
        return BuiltArtifact(path=path, manifest_path=manifest_path, manifest=present, cached=True)
    output.mkdir(parents=True, exist_ok=True)
    with scratch_directory(path) as directory:
        manifest = _build_in(directory, version, architecture, inputs, path)
        _write_manifest(directory, manifest, manifest_path)
    return BuiltArtifact(path=path, manifest_path=manifest_path, manifest=manifest, cached=False)


def _check(version: str, architecture: str) -> None:
    if not VERSION_PATTERN.fullmatch(version):
        raise BuildError(f"version {version!r}: expected vMAJOR.MINOR.PATCH, e.g. v0.1.0 or v1.2.0-rc.1")
    if architecture not in ARCHITECTURES:
        raise BuildError(f"architecture {architecture!r}: expected {' or '.join(ARCHITECTURES)}")


def _build_in(work: Path, version: str, architecture: str, inputs: str, target: Path) -> Manifest:
    tree = work / "tree"
    _vendor(tree / "lib", architecture)
    release = _add_service(tree / "lib", version)
    launcher = tree / "bin" / NAME
    launcher.parent.mkdir()
    launcher.write_text(_LAUNCHER, encoding="utf-8")
    launcher.chmod(0o755)
    tarball = work / target.name
    _pack(tree, tarball)
    manifest = Manifest(
        name=NAME,
        version=version,
        file=target.name,
        sha256=_sha256(tarball),
        schema_min=release["schema_min"],
        schema_max=release["schema_max"],
        metrics=release["metrics"],
        python=PYTHON,
        platform=f"linux-{architecture}",
        inputs=inputs,
    )
    tarball.replace(target)
    return manifest


def _vendor(target: Path, architecture: str) -> None:
    """Copy the pinned dependencies to `target`, from the user's shared cache, which is filled first if necessary."""
    try:
        directory, reason = shared_or(target.parent)
    except CacheError as error:
        raise BuildError(str(error)) from error
    if reason:
        _install_dependencies(target, architecture)
        return
    pinned = hashlib.sha256(_REQUIREMENTS.read_bytes() + f"{PYTHON} {architecture} {PLATFORMS}".encode())
    kept = directory / f"service-dependencies-{pinned.hexdigest()[:12]}"
    with exclusive(directory / "service-dependencies.lock"):
        if not (kept.is_dir() and belongs_to_this_user(kept)):
            with replacing(kept) as partial:
                _install_dependencies(partial, architecture)
                partial.chmod(0o755)
            remove_unused(kept, "service-dependencies-*")
        mark_used(kept)
        shutil.copytree(kept, target)


def _install_dependencies(target: Path, architecture: str) -> None:
    """Install the pinned dependencies for the target's interpreter, which may differ from this one."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(target), "--require-hashes", "--only-binary=:all:", "--no-deps", "--no-compile"]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    command += [f"--platform={name}_{architecture}" for name in PLATFORMS]
    try:
        subprocess.run(
            [*command, "--requirement", str(_REQUIREMENTS)],
            check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise BuildError(_explain(error.stderr)) from None
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"pip did not download the dependencies within {_PIP_TIMEOUT_S} s: run the build again"
        ) from None
    _strip(target)


def _explain(stderr: str) -> str:
    """Return the cause of pip's failure, followed by the last lines of its output."""
    if "No module named pip" in stderr:
        cause = f"{sys.executable} has no pip: run `make up` or `{sys.executable} -m ensurepip`"
    elif "HASHES" in stderr:
        cause = f"a downloaded file does not match its hash in {_REQUIREMENTS.name}: check the package registry"
    elif re.search(r"Connection|Max retries|timed out|resolution|from versions: none", stderr):
        cause = "the package registry is not reachable or lacks a package: check the network and pip's configuration"
    else:
        cause = "pip could not install the dependencies"
    return "\n".join([cause, *stderr.strip().splitlines()[-5:]])


def _strip(target: Path) -> None:
    """Remove the files that depend on the build machine: command scripts and pip's records of the installation."""
    shutil.rmtree(target / "bin", ignore_errors=True)
    for record in target.glob("*.dist-info/*"):
        if record.name in _INSTALL_RECORDS:
            record.unlink()


def _add_service(lib: Path, version: str) -> dict[str, Any]:
    """Copy the service and write its version into its release file; returns the content of that file."""
    package = lib / _PACKAGE.name
    for source in _sources():
        copy = package / source.relative_to(_PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    path = package / "release.json"
    release: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8")), "version": version}
    path.write_text(json.dumps(release, indent=2) + "\n", encoding="utf-8")
    return release


def _pack(tree: Path, tarball: Path) -> None:
    """Write a tarball whose bytes depend only on the names and contents of the files."""
    with (
        tarball.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as compressed,
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(tree.rglob("*")):
            archive.add(path, arcname=path.relative_to(tree).as_posix(), recursive=False, filter=_normalized)


def _normalized(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def _sources() -> Iterator[Path]:
    """Yield the service's own files, in a fixed order."""
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _digest_of_inputs(version: str, architecture: str) -> str:
    digest = hashlib.sha256(f"{version}\0{architecture}".encode())
    named = {"build": Path(__file__), "requirements": _REQUIREMENTS}
    named |= {path.relative_to(_PACKAGE).as_posix(): path for path in _sources()}
    for name, path in named.items():
        digest.update(f"\0{name}\0{_sha256(path)}".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(work: Path, manifest: Manifest, target: Path) -> None:
    draft = work / target.name
    draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    draft.replace(target)


def main() -> int:
    """Run the command line; returns the exit status: 0 built or up to date, 1 failed."""
    parser = argparse.ArgumentParser(prog="python -m service.build", description="Build the storage service.")
    parser.add_argument("--version", required=True, help="version to build: vMAJOR.MINOR.PATCH[-pre]")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="directory for the artifact (default: dist)")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="architecture to build for (default: this machine's)")
    arguments = parser.parse_args()
    try:
        built = build(arguments.version, arguments.output, architecture=arguments.arch)
    except BuildError as error:
        sys.stderr.write(f"build: {error}\n")
        return 1
    done = "is up to date" if built.cached else "built"
    sys.stdout.write(f"{built.path} {done} (sha256 {built.manifest.sha256})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
