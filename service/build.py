"""Build the storage service's artifact: one versioned tarball for Debian's Python, and its manifest.

Owns what is in an artifact and that the same sources make the same bytes. Does not own signing, nor where artifacts go.

The tarball unpacks to `bin/storage-service` and `lib/`, which holds the service and every dependency: nothing is
installed where it runs, except the interpreter. `requirements.txt` beside this module pins the dependencies by hash.
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
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "storage-service"
PYTHON = "3.13"  # Debian 13's
VERSION_PATTERN = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?")
ARCHITECTURES = ("x86_64", "aarch64")
# What Debian 13's glibc (2.41) can load; pip does not work out the older ones by itself.
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
    """An artifact that cannot be built; the message names the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a deployment needs to know of an artifact, kept as JSON beside it.

    Attributes:
        name: name of the service.
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        file: name of the tarball.
        sha256: digest of the tarball, in hexadecimal.
        schema_min: lowest migration version that the service works with.
        schema_max: highest migration version that the service works with.
        python: interpreter that the dependencies are compiled for.
        platform: operating system and architecture.
        inputs: digest of everything that went in, by which the next build knows that this one is up to date.
    """

    name: str
    version: str
    file: str
    sha256: str
    schema_min: int
    schema_max: int
    python: str
    platform: str
    inputs: str

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Read a manifest, signed or not; None if there is none, or none of this form."""
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
        cached: it was there already and up to date.
    """

    path: Path
    manifest_path: Path
    manifest: Manifest
    cached: bool


def build(version: str, output: Path, *, architecture: str | None = None) -> BuiltArtifact:
    """Build the artifact of a version, unless an up-to-date one is there.

    Args:
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        output: directory for the tarball and the manifest; made if missing.
        architecture: machine to build for, as `uname -m` names it; this machine's if not given.

    Raises:
        BuildError: the version or the architecture is no good, or the dependencies cannot be fetched.
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
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{stem}-") as directory:
        manifest = _build_in(Path(directory), version, architecture, inputs, path)
        _write_manifest(Path(directory), manifest, manifest_path)
    return BuiltArtifact(path=path, manifest_path=manifest_path, manifest=manifest, cached=False)


def _check(version: str, architecture: str) -> None:
    if not VERSION_PATTERN.fullmatch(version):
        raise BuildError(f"version {version!r}: expected vMAJOR.MINOR.PATCH, such as v0.1.0 or v1.2.0-rc.1")
    if architecture not in ARCHITECTURES:
        raise BuildError(f"architecture {architecture!r}: artifacts are built for {' and '.join(ARCHITECTURES)} only")


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
        python=PYTHON,
        platform=f"linux-{architecture}",
        inputs=inputs,
    )
    tarball.replace(target)
    return manifest


def _vendor(target: Path, architecture: str) -> None:
    """Install the pinned dependencies for the target's interpreter, which need not be this one."""
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
        raise BuildError(f"pip did not fetch the dependencies within {_PIP_TIMEOUT_S} s: try again") from None
    _strip(target)


def _explain(stderr: str) -> str:
    """Name the cause of pip's failure, and repeat its own last lines."""
    if "No module named pip" in stderr:
        cause = f"{sys.executable} has no pip: run `make up`, or `{sys.executable} -m ensurepip`"
    elif "HASHES" in stderr:
        cause = f"a downloaded file is not the one pinned in {_REQUIREMENTS.name}; do not use it"
    elif re.search(r"Connection|Max retries|timed out|resolution|from versions: none", stderr):
        cause = "the package registry cannot be reached, or lacks a package: check the network and pip's configuration"
    else:
        cause = "pip cannot install the dependencies"
    return "\n".join([cause, *stderr.strip().splitlines()[-5:]])


def _strip(target: Path) -> None:
    """Remove what pip leaves that depends on the machine: command scripts and its records of the installation."""
    shutil.rmtree(target / "bin", ignore_errors=True)
    for record in target.glob("*.dist-info/*"):
        if record.name in _INSTALL_RECORDS:
            record.unlink()


def _add_service(lib: Path, version: str) -> dict[str, Any]:
    """Copy the service and bake its version in; return its release file."""
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
    """Write a tarball whose bytes depend on the files' names and contents only."""
    with (
        tarball.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as compressed,
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(tree.rglob("*")):
            archive.add(path, arcname=path.relative_to(tree).as_posix(), recursive=False, filter=_neutral)


def _neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
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
    """Build from the command line; return the exit status: 0 built or up to date, 1 failed."""
    parser = argparse.ArgumentParser(prog="python -m service.build", description="Build the storage service.")
    parser.add_argument("--version", required=True, help="vMAJOR.MINOR.PATCH[-pre]")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="directory for the artifact")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="machine to build for; this one's by default")
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
