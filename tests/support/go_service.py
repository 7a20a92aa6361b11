"""Builds the storage service of `tests/go_service`: an artifact and its manifest, without a signature.

As a program: `python -m tests.support.go_service VERSION DIRECTORY` prints the path of the artifact.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "go_service"
PROGRAM = "bin/storage-service"


def build_go_service(version: str, directory: Path) -> tuple[Path, Path]:
    """Build a version into a directory; returns its artifact and its manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    document = json.loads((SOURCES / "manifest.json").read_text(encoding="utf-8"))
    artifact = directory / f"{document['name']}-{version}.tar.gz"
    program = _compiled(version, directory)
    with tarfile.open(artifact, "w:gz") as archive:
        member = tarfile.TarInfo(PROGRAM)
        member.size, member.mode = len(program), 0o755
        archive.addfile(member, io.BytesIO(program))
    manifest = directory / f"{document['name']}-{version}.json"
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    manifest.write_text(json.dumps({**document, "version": version, "sha256": digest}, indent=2) + "\n")
    return artifact, manifest


def _compiled(version: str, directory: Path) -> bytes:
    """Return the program, linked statically: it runs with any C library, and without one."""
    target = directory.resolve() / "storage-service"
    options = ("-mod=readonly", "-trimpath", "-ldflags", f"-s -w -X main.version={version}", "-o", str(target), ".")
    done = subprocess.run(
        ["go", "build", "-C", str(SOURCES), *options],
        env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the Go service cannot be built:\n{done.stderr}")
    program = target.read_bytes()
    target.unlink()
    return program


if __name__ == "__main__":
    print(build_go_service(sys.argv[1], Path(sys.argv[2]))[0])  # noqa: T201 - its output
