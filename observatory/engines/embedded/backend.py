"""The CLI's file backend: the paths of a stack's checkpoint, lock and history, and how to read and write them.

Follows pkg/backend/diy in Pulumi's source. ``snapshot`` interprets the checkpoint's content.
"""

from __future__ import annotations

import getpass
import gzip
import json
import os
import shutil
import socket
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from observatory.engines.embedded.errors import LockedError, StateError
from observatory.files.atomic import replacing
from observatory.files.reserve import with_reserve

_LAYOUT_VERSION = 1  # project-scoped stacks; 0 was the layout before 2023
_CHECKPOINT_VERSION = 3
_FEATURED_VERSION = 4  # like 3, with a list of the features that a reader must support
_FEATURES = {"replaceWith", "taint"}
_GZIP, _ZSTD = ".gz", ".zst"  # of the CLI's PULUMI_DIY_BACKEND_GZIP and PULUMI_DIY_BACKEND_ZSTD
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_LEVEL = 6  # the default of the CLI's library; the state is written after each step
_START_TIME_MARGIN_S = 2.0  # seconds; the boot time, on which a process's start time is based, has whole seconds


@dataclass(frozen=True, kw_only=True)
class StackFiles:
    """The files of one stack in a ``file://`` backend directory."""

    root: Path
    project: str
    stack: str

    @property
    def checkpoint(self) -> Path:
        """The stack's state file: of the plain and the compressed ones the newest, as for the CLI."""
        plain = self._bookkeeping / "stacks" / self.project / f"{self.stack}.json"
        found = {path: path.stat().st_mtime_ns for path in _variants(plain) if path.exists()}
        return max(found, key=found.__getitem__, default=plain)

    @property
    def _bookkeeping(self) -> Path:
        return self.root / ".pulumi"

    @property
    def _locks(self) -> Path:
        return self._bookkeeping / "locks" / "organization" / self.project / self.stack

    def read(self) -> dict[str, Any]:
        """Return the stack's latest deployment, empty if it has none.

        Raises:
            StateError: the file is damaged, or of a newer version, layout or compression.
        """
        self._check_layout()
        if not self.checkpoint.exists():
            return {}
        try:
            document = json.loads(_expanded(self.checkpoint))
            version, latest = document["version"], dict(document["checkpoint"].get("latest") or {})
            unknown = set(document.get("features") or []) - _FEATURES
            _ = [resource["urn"] for resource in latest.get("resources") or []]  # each must be an object with a URN
        except (ValueError, KeyError, AttributeError, TypeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise StateError(
                f"the state file {self.checkpoint} is damaged ({error}); it was not changed. "
                f"{self.checkpoint}.bak has the state before the last change: copy it over the file and run again"
            ) from error
        if version not in {_CHECKPOINT_VERSION, _FEATURED_VERSION} or unknown:
            raise StateError(
                f"the state file {self.checkpoint} has version {version} {sorted(unknown) or ''}, which this "
                "engine does not support; it was not changed. Use the Pulumi CLI or a newer release"
            )
        return latest

    def write(self, latest: str, features: list[str]) -> None:
        """Replace the stack's latest deployment, atomically and durably; a compressed file stays compressed.

        Args:
            latest: The deployment, a JSON object.
            features: The names of the features that a reader must support.

        Raises:
            StateError: the file cannot be written; the previous state stays.
        """
        version = f'{_FEATURED_VERSION},"features":{json.dumps(features)}' if features else _CHECKPOINT_VERSION
        checkpoint = f'{{"stack":"organization/{self.project}/{self.stack}","latest":{latest}}}'
        try:
            _write_atomically(self.checkpoint, f'{{"version":{version},"checkpoint":{checkpoint}}}')
        except OSError as error:
            raise StateError(
                f"cannot write the state file {self.checkpoint}: {error}; the previous one is kept. "
                "Free space on the disk or make it writable, then run again"
            ) from error

    def back_up(self) -> None:
        """Copy the current state to ``.bak`` beside it, before a run changes it."""
        meta = self._bookkeeping / "meta.yaml"
        if not meta.exists():
            _write_atomically(meta, f"version: {_LAYOUT_VERSION}\n")
        if self.checkpoint.exists():
            shutil.copyfile(self.checkpoint, f"{self.checkpoint}.bak")

    def remove(self) -> None:
        """Remove the state, its copies and the history."""
        for path in self.checkpoint.parent.glob(f"{self.stack}.json*"):
            path.unlink()
        for kind in ("history", "backups"):
            shutil.rmtree(self._bookkeeping / kind / self.project / self.stack, ignore_errors=True)

    def add_history(self, *, kind: str, started: float, succeeded: bool, changes: dict[str, int]) -> None:
        """Append the run to the stack's history, with its checkpoint (``pulumi stack history`` shows it)."""
        directory = self._bookkeeping / "history" / self.project / self.stack
        stem = directory / f"{self.stack}-{time.time_ns()}"
        entry = {
            "kind": kind,
            "startTime": int(started),
            "environment": {"exec.kind": "observatory.engine"},
            "result": "succeeded" if succeeded else "failed",
            "endTime": int(time.time()),
            "resourceChanges": changes,
        }
        checkpoint = self.checkpoint
        compression = checkpoint.suffix if checkpoint.suffix == _GZIP else ""
        _write_atomically(Path(f"{stem}.history.json{compression}"), json.dumps(entry))
        if checkpoint.exists():
            shutil.copyfile(checkpoint, f"{stem}.checkpoint.json{compression}")

    @contextmanager
    def lock(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Hold the stack's lock, the CLI's own.

        A lock whose process no longer runs on this host is removed, with a warning.

        Raises:
            LockedError: another run holds it.
        """
        self.clear_locks(warn)
        own = self._locks / f"{uuid.uuid4()}.json"
        holder = {
            "pid": os.getpid(),
            "username": getpass.getuser(),
            "hostname": socket.gethostname(),
            "timestamp": now(),
        }
        _write_atomically(own, json.dumps(holder))
        try:
            self.clear_locks(warn, own)
            yield
        finally:
            _remove_with_hash(own)

    def clear_locks(self, warn: Callable[[str], None], own: Path | None = None) -> tuple[int, ...]:
        """Remove the locks whose process no longer runs on this host, with a warning, and return the process IDs.

        Raises:
            LockedError: another run holds a lock; `own` does not count.
        """
        dead: list[int] = []
        for hashed in self._locks.glob("*.json.attrs"):
            if not hashed.with_suffix("").exists():
                hashed.unlink(missing_ok=True)
        for path in sorted(set(self._locks.glob("*.json")) - {own}):
            try:
                holder = defaultdict(lambda: "?", json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue
            except ValueError:
                holder = defaultdict(lambda: "?")
            owner = f"{holder['username']}@{holder['hostname']} (pid {holder['pid']}) at {holder['timestamp']}"
            if not _is_stale(holder):
                raise LockedError(
                    f"the stack {self.stack} is locked by {owner}: wait for that run to end. If it certainly no "
                    f"longer runs, remove {path} or run `pulumi cancel`"
                )
            _remove_with_hash(path)
            warn(f"removed the lock left by {owner}: the process no longer runs")
            dead.append(holder["pid"])
        if dead:
            self._remove_hashes()
        return tuple(dead)

    def _remove_hashes(self) -> None:
        """Remove the CLI's cached content hashes: after a killed CLI left one incomplete, no CLI reads the state."""
        for path in self.checkpoint.parent.glob(f"{self.stack}.json*.attrs"):
            path.unlink(missing_ok=True)

    def _check_layout(self) -> None:
        meta = self._bookkeeping / "meta.yaml"
        try:
            version = (yaml.safe_load(meta.read_text()) or {}).get("version", 0) if meta.exists() else _LAYOUT_VERSION
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise StateError(f"{meta} is damaged ({error}); write `version: {_LAYOUT_VERSION}` into it") from error
        if version != _LAYOUT_VERSION:
            raise StateError(
                f"{meta}: the backend has layout {version}, and this engine supports {_LAYOUT_VERSION}; "
                "run `pulumi state upgrade`"
            )
        if self.checkpoint.suffix == _ZSTD:
            raise StateError(
                f"the state file {self.checkpoint} is compressed with Zstandard, which this engine does not read; "
                "nothing was changed. Use the Pulumi CLI (omit --engine embedded); an `up` of the CLI without "
                "PULUMI_DIY_BACKEND_ZSTD writes the state in a format that this engine reads"
            )


def now() -> str:
    """Return the current time as checkpoints hold it (RFC 3339, UTC)."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _write_atomically(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()

    def write() -> None:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(gzip.compress(data, _GZIP_LEVEL) if path.suffix == _GZIP else data)
            file.flush()
            os.fsync(file.fileno())

    with_reserve(path, write)
    _hash_of(path).unlink(missing_ok=True)  # out of date


def _variants(plain: Path) -> tuple[Path, ...]:
    """Return a file's names by compression."""
    return (plain, *(plain.with_name(plain.name + suffix) for suffix in (_GZIP, _ZSTD)))


def _expanded(path: Path) -> bytes:
    """Return a file's content; like the CLI, detect the compression from the content."""
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data


def _hash_of(path: Path) -> Path:
    """Return the file in which the CLI caches the hash of a file's content."""
    return path.with_name(f"{path.name}.attrs")


def _remove_with_hash(path: Path) -> None:
    path.unlink(missing_ok=True)
    _hash_of(path).unlink(missing_ok=True)


def _is_stale(holder: Mapping[str, Any]) -> bool:
    """Return whether a lock's process no longer runs: it was on this host, and is dead or younger than the lock."""
    if holder["hostname"] != socket.gethostname() or not isinstance(holder["pid"], int):
        return False
    import psutil  # noqa: PLC0415 - only where there is another lock

    try:
        os.kill(holder["pid"], 0)  # psutil reports a process of another user as missing where /proc is restricted
        locked = datetime.fromisoformat(holder["timestamp"]).timestamp()
        process = psutil.Process(holder["pid"])
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > locked + _START_TIME_MARGIN_S
    except ProcessLookupError:
        return True
    except (OSError, ValueError, psutil.Error):
        return False
