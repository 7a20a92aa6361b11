"""A small filesystem of its own, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHUNK = b"\0" * 2**20


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a filesystem of this size over `directory`, and unmount it at the end; skip the test where that fails."""
    with mounted(directory, size) as problem:
        if problem:
            pytest.skip(problem)
        yield directory


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[str]:
    """Mount a filesystem over `directory` until the end of the block; yield why that failed, or nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        yield "needs root, to mount a small filesystem"
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"cannot mount a small filesystem: {done.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def available(directory: Path) -> int:
    """Return the available bytes."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def total(directory: Path) -> int:
    """Return the size of the filesystem."""
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize


def fill(file: Path, *, leave: int = 0) -> None:
    """Write to a file until only `leave` bytes are available, or none."""
    with file.open("ab", buffering=0) as filler:
        while available(file.parent) > leave:
            try:
                filler.write(CHUNK[: max(1, min(len(CHUNK), available(file.parent) - leave))])
            except OSError:
                return
