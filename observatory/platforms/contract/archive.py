"""What can be said about a release without running it: its manifest, its digest and its files."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from pathlib import Path

from observatory.delivery.releases import Manifest, check_digest, install, read_manifest
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.runtime import Sandbox

PROGRAM = "bin/storage-service"
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}  # e_machine of an ELF file
_ELF = b"\x7fELF"
_EXECUTABLE = 0o111
_MACHINE = 18  # offset of e_machine


def check_manifest(findings: Findings, artifact: Path, file: Path) -> Manifest | None:
    """Check the manifest and the digest of an artifact; returns the manifest if both are right."""
    manifest = None
    with findings.requirement("manifest", "the manifest has its fields, each in its form"):
        manifest = read_manifest(file)
    if manifest is None:
        return None
    with findings.requirement("manifest", "sha256 is the digest of the archive"):
        check_digest(artifact, manifest.sha256)
    return manifest if findings.met_last() else None


def check_archive(findings: Findings, sandbox: Sandbox, artifact: Path, manifest: Manifest, directory: str) -> bool:
    """Unpack an artifact into a directory of the sandbox and check its files; returns whether it can be run."""
    target = sandbox.host_path(directory)
    with findings.requirement("archive", "the archive is a tar file of plain files and directories below its root"):
        sandbox.make_directory(str(Path(directory).parent))
        install(artifact, sha256=manifest.sha256, target=target)
    if not findings.met_last():
        return False
    with findings.requirement("archive", f"{PROGRAM} is an executable file"):
        _check_program(target / PROGRAM)
    if not findings.met_last():
        return False
    with findings.requirement("archive", f"programs and libraries are for {platform.machine()}"):
        _check_architecture(target)
    sandbox.adopt(directory)
    return findings.met_last()


def _check_program(program: Path) -> None:
    if not program.is_file():
        raise ContractError(f"the archive has no {PROGRAM}: it must be at the root of the archive, in `bin`")
    if not program.stat().st_mode & _EXECUTABLE:
        raise ContractError(f"{PROGRAM} is not executable: set its mode to 0755 before packing")


def _check_architecture(directory: Path) -> None:
    for file, machine in _elf_files(directory):
        if machine != platform.machine():
            raise ContractError(f"{file.relative_to(directory)} is for {machine}: build it for {platform.machine()}")


def _elf_files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield each ELF file and the architecture that it is for."""
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            head = opened.read(_MACHINE + 2)
        if head.startswith(_ELF) and len(head) == _MACHINE + 2:
            (machine,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, _MACHINE)
            yield file, ARCHITECTURES.get(machine, f"another machine ({machine})")
