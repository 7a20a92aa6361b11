"""The CLI's file backend: where a stack's checkpoint, lock and history lie, and how they are read and written.

Owns paths, atomic writes and the lock (pkg/backend/diy in Pulumi's source). What a checkpoint means is ``snapshot``'s.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from observatory.engines.embedded.errors import LockedError, StateError
from observatory.files.atomic import partial_path

_LAYOUT_VERSION = 1  # project-scoped stacks; 0 was the layout before 2023
_CHECKPOINT_VERSION = 3
_FEATURED_VERSION = 4  # the same, and lists the features that a reader must know
_FEATURES = {"replaceWith", "taint"}
_CLOCK_TICK_MARGIN = 2.0  # seconds; a process's start time is known to a clock tick, the boot time to a second


@dataclass(frozen=True, kw_only=True)
class StackFiles:
    """The files of one stack in a ``file://`` backend directory."""

    root: Path
    project: str
    stack: str

    @property
    def checkpoint(self) -> Path:
        """The stack's state file."""
        return self._bookkeeping / "stacks" / self.project / f"{self.stack}.json"

    @property
    def _bookkeeping(self) -> Path:
        return self.root / ".pulumi"

    @property
    def _locks(self) -> Path:
        return self._bookkeeping / "locks" / "organization" / self.project / self.stack

    def read(self) -> dict[str, Any]:
        """Return the stack's latest deployment, empty if it has none.

        Raises:
            StateError: the file is cut short, of a newer version or in a layout this engine does not write.
        """
        self._check_layout()
        if not self.checkpoint.exists():
            return {}
        try:
            document = json.loads(self.checkpoint.read_bytes())
            version, latest = document["version"], dict(document["checkpoint"].get("latest") or {})
            unknown = set(document.get("features") or []) - _FEATURES
            _ = [resource["urn"] for resource in latest.get("resources") or []]  # each is an object, and has one
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise StateError(
                f"the state file {self.checkpoint} is damaged ({error}); it was left as it is. The state before the "
                f"last change is {self.checkpoint}.bak: copy it over the damaged file and run again"
            ) from error
        if version not in {_CHECKPOINT_VERSION, _FEATURED_VERSION} or unknown:
            raise StateError(
                f"the state file {self.checkpoint} has version {version} {sorted(unknown) or ''}, which this "
                "engine does not know; it was left as it is. Use the Pulumi CLI or a newer release"
            )
        return latest

    def write(self, latest: str, features: list[str]) -> None:
        """Replace the stack's latest deployment, atomically and durably.

        Args:
            latest: The deployment, a JSON object.
            features: What in it a reader must know of.

        Raises:
            StateError: the disk refuses; the last state written is still there.
        """
        version = f'{_FEATURED_VERSION},"features":{json.dumps(features)}' if features else _CHECKPOINT_VERSION
        checkpoint = f'{{"stack":"organization/{self.project}/{self.stack}","latest":{latest}}}'
        try:
            _write_atomically(self.checkpoint, f'{{"version":{version},"checkpoint":{checkpoint}}}')
        except OSError as error:
            raise StateError(f"cannot write the state file {self.checkpoint}: {error}; the last one is kept") from error

    def back_up(self) -> None:
        """Keep the present state beside the file, as ``.bak``, before a run changes it."""
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
        _write_atomically(Path(f"{stem}.history.json"), json.dumps(entry))
        if self.checkpoint.exists():
            shutil.copyfile(self.checkpoint, f"{stem}.checkpoint.json")

    @contextmanager
    def lock(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Hold the stack's lock, the CLI's own.

        A lock whose process no longer runs on this host is removed, with a warning.

        Raises:
            LockedError: somebody else holds it.
        """
        self.clear_locks(warn)
        mine = self._locks / f"{uuid.uuid4()}.json"
        holder = {
            "pid": os.getpid(),
            "username": getpass.getuser(),
            "hostname": socket.gethostname(),
            "timestamp": now(),
        }
        _write_atomically(mine, json.dumps(holder))
        try:
            self.clear_locks(warn, mine)
            yield
        finally:
            mine.unlink(missing_ok=True)

    def clear_locks(self, warn: Callable[[str], None], mine: Path | None = None) -> tuple[int, ...]:
        """Remove the locks whose process no longer runs on this host, with a warning, and return those processes.

        Raises:
            LockedError: somebody else than `mine` holds a lock.
        """
        gone: list[int] = []
        for path in sorted(set(self._locks.glob("*.json")) - {mine}):
            try:
                holder = defaultdict(lambda: "?", json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue
            except ValueError:
                holder = defaultdict(lambda: "?")
            who = f"{holder['username']}@{holder['hostname']} (pid {holder['pid']}) at {holder['timestamp']}"
            if not _is_stale(holder):
                raise LockedError(
                    f"the stack {self.stack} is locked by {who}: wait for that run to end, or, if it cannot be "
                    f"running any more, remove {path} (or run `pulumi cancel`)"
                )
            path.unlink(missing_ok=True)
            warn(f"removed the lock left by {who}: that process is gone")
            gone.append(holder["pid"])
        if gone:
            self._forget_hashes()
        return tuple(gone)

    def _forget_hashes(self) -> None:
        """Remove the CLI's cached content hashes: a killed CLI may leave one cut short, and then reads nothing more."""
        for path in self.checkpoint.parent.glob(f"{self.stack}.json*.attrs"):
            path.unlink(missing_ok=True)

    def _check_layout(self) -> None:
        meta = self._bookkeeping / "meta.yaml"
        try:
            version = (yaml.safe_load(meta.read_text()) or {}).get("version", 0) if meta.exists() else _LAYOUT_VERSION
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise StateError(f"{meta} is damaged ({error}); it should hold `version: {_LAYOUT_VERSION}`") from error
        if version != _LAYOUT_VERSION:
            raise StateError(
                f"{meta}: backend layout {version}, known is {_LAYOUT_VERSION}; see `pulumi state upgrade`"
            )
        for path in self.checkpoint.parent.glob(f"{self.stack}.json.*"):
            if path.suffix in {".gz", ".zst"}:
                raise StateError(f"{path} is compressed; rewrite it with the CLI without PULUMI_DIY_BACKEND_GZIP")


def now() -> str:
    """Return the present time as checkpoints hold it (RFC 3339, UTC)."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _write_atomically(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    path.with_name(f"{path.name}.attrs").unlink(missing_ok=True)  # the CLI's cached content hash, now out of date


def _is_stale(holder: Mapping[str, Any]) -> bool:
    """Tell whether a lock's process is surely gone: of this host, and dead or younger than the lock."""
    if holder["hostname"] != socket.gethostname() or not isinstance(holder["pid"], int):
        return False
    try:
        os.kill(holder["pid"], 0)
        state, started = _state(holder["pid"])
        locked = datetime.fromisoformat(holder["timestamp"]).timestamp()
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return state == "Z" or started > locked + _CLOCK_TICK_MARGIN


def _state(pid: int) -> tuple[str, float]:
    """Return a process's state (Z: it ended, and its parent has not noticed) and when it started, since the epoch.

    Both are nothing where /proc does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return "", 0.0
    return fields[0], int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
