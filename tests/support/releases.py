"""Further versions of the reference service: the real artifact with a fault of `tests.support.faulty` inside."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from observatory.delivery.releases import sign_release
from tests.support import faulty
from tests.support.faulty.launch import FAULTS

LAUNCHER, RELEASE, PACKAGE = "bin/storage-service", "lib/storage_service/release.json", "lib/faulty"
IMPORT = "from storage_service.__main__ import main"


def variant(
    source: Path, version: str, target: Path, *, key: str, fault: str = "good", schema_min: int | None = None
) -> Path:
    """Write `version` with a fault into the directory `target`, made from an artifact, and return the new artifact.

    `key` is the private key that signs it.
    """
    if fault not in FAULTS:
        raise ValueError(f"no fault {fault!r}; there are {', '.join(FAULTS)}")
    target.mkdir(parents=True, exist_ok=True)
    artifact = target / f"{version}.tar.gz"
    with tarfile.open(artifact, "w:gz", compresslevel=0) as archive:  # it is unpacked again and again
        for member, content in _members(source, version, fault):
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    manifest = json.loads(source.with_name(source.name.replace(".tar.gz", ".json")).read_text())
    changed = {**manifest, "version": version, "file": artifact.name, "sha256": digest}
    if schema_min is not None:
        changed |= {"schema_min": schema_min, "schema_max": schema_min}
    manifest_file = artifact.with_name(f"{version}.json")
    manifest_file.write_text(json.dumps(changed))
    sign_release(artifact, manifest_file, key)
    return artifact


def _members(source: Path, version: str, fault: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(source) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            content = file.read() if file else b""
            if member.name == LAUNCHER:
                installing = f"from faulty.launch import install\n\ninstall({fault!r})\n{IMPORT}"
                content = content.replace(IMPORT.encode(), installing.encode())
            elif member.name == RELEASE:
                release: dict[str, Any] = json.loads(content)
                content = json.dumps({**release, "version": version}).encode()
            yield member, content
    for file_of_fault in sorted(Path(faulty.__path__[0]).glob("*.py")):
        member = tarfile.TarInfo(f"{PACKAGE}/{file_of_fault.name}")
        member.mode = 0o644
        yield member, file_of_fault.read_bytes()
