"""The stack's lock, and states that are damaged, newer or not writable."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from observatory.engines import embedded as engine
from observatory.files.atomic import partial_path
from tests.engines.embedded.lab import HELD, STACK, TIMEOUT_S, TWO, Lab, eventually

pytestmark = pytest.mark.slow


def leave_lock(lab: Lab, **fields: Any) -> Path:
    directory = lab.backend / ".pulumi/locks/organization/lab" / STACK
    directory.mkdir(parents=True)
    holder = {"username": "me", "hostname": socket.gethostname(), "timestamp": "2026-01-02T03:04:05Z"} | fields
    (directory / "left.json").write_text(json.dumps(holder))
    return directory / "left.json"


def test_a_held_lock_is_refused_with_its_holder(lab: Lab) -> None:
    lab.program(HELD)
    first = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    second = lab.embedded("up")
    assert second.failed
    assert f"pid {first.pid}" in second.message
    assert str(lab.locks[0]) in second.message
    (lab.home / "go").touch()
    output, _ = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 0
    assert json.loads(output)["summary"] == {"create": 4}
    assert lab.locks == []


def test_preview_needs_no_lock(lab: Lab) -> None:
    leave_lock(lab, pid=1)
    lab.program(TWO)
    assert not lab.embedded("preview").failed


@pytest.mark.parametrize("who", ["dead", "reused pid"])
def test_the_lock_of_a_dead_process_is_removed(lab: Lab, who: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid = gone.pid if who == "dead" else os.getpid()
    leave_lock(lab, pid=pid, timestamp="2020-01-02T03:04:05.123456789+01:00")
    lab.program(TWO)
    assert not lab.embedded("up").failed
    assert any(severity == "warning" and f"pid {pid}" in text for severity, text in lab.diagnostics())
    assert lab.locks == []


def test_the_lock_of_another_host_is_not_removed(lab: Lab) -> None:
    path = leave_lock(lab, pid=1, hostname="elsewhere")
    lab.program(TWO)
    outcome = lab.embedded("up")
    assert outcome.failed
    assert "elsewhere" in outcome.message
    assert path.exists()


@pytest.mark.cli
def test_the_cli_respects_the_embedded_engines_lock(lab: Lab) -> None:
    lab.program(HELD)
    lab.pulumi("stack", "init", STACK)
    ours = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    assert f"pid {ours.pid}" in lab.cli("up").message
    (lab.home / "go").touch()
    ours.communicate(timeout=TIMEOUT_S)
    assert ours.returncode == 0


def test_an_incomplete_state_is_refused_and_not_changed(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    whole = lab.checkpoint.read_text()
    lab.checkpoint.write_text(whole[: len(whole) // 2])
    with pytest.raises(engine.StateError) as caught:
        engine.up(lab.options)
    assert f"{lab.checkpoint}.bak" in str(caught.value)
    assert lab.checkpoint.read_text() == whole[: len(whole) // 2]
    assert lab.locks == []


DAMAGED = (
    "",
    "\x00\x00\x00\x00",
    "null",
    '{"version": 3, "checkpoint": {"latest": [1]}}',
    '{"version": 3, "checkpoint": {"latest": {"resources": 5}}}',
    '{"version": 3, "checkpoint": {"latest": {"resources": [5]}}}',
)


def test_a_damaged_state_is_refused_and_its_copy_works(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    lab.program('a = Thing("a", size=2)')
    lab.embedded("up")
    for content in DAMAGED:
        lab.checkpoint.write_text(content)
        for operation in (engine.up, engine.preview, engine.destroy, engine.resources):
            with pytest.raises(engine.StateError, match="is damaged"):
                operation(lab.options)
        assert lab.checkpoint.read_text() == content
    lab.checkpoint.write_bytes(Path(f"{lab.checkpoint}.bak").read_bytes())
    assert lab.embedded("up").steps == ["delete b", "update a"]


def test_a_damaged_layout_file_is_refused(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    (lab.backend / ".pulumi/meta.yaml").write_text("{")
    with pytest.raises(engine.StateError, match=r"meta\.yaml is damaged"):
        engine.up(lab.options)


@pytest.mark.parametrize("change", [{"version": 5}, {"version": 4, "features": ["views"]}])
def test_a_newer_state_is_refused_and_not_changed(lab: Lab, change: dict[str, Any]) -> None:
    lab.program(TWO)
    lab.embedded("up")
    newer = json.dumps(json.loads(lab.checkpoint.read_text()) | change)
    lab.checkpoint.write_text(newer)
    with pytest.raises(engine.StateError, match="does not support"):
        engine.up(lab.options)
    assert lab.checkpoint.read_text() == newer


def files(lab: Lab) -> set[str]:
    """Return the names of the files of state and history, without the numbers in them."""
    found = (path for path in (lab.backend / ".pulumi").rglob("*") if path.is_file() and "locks" not in path.parts)
    return {re.sub(r"\d{15,}", "N", path.name) for path in found} - {"meta.yaml"}


def compress(lab: Lab) -> Path:
    """Compress the state as PULUMI_DIY_BACKEND_GZIP does."""
    compressed = Path(f"{lab.checkpoint}.gz")
    compressed.write_bytes(gzip.compress(lab.checkpoint.read_bytes()))
    lab.checkpoint.unlink()
    return compressed


def test_a_compressed_state_is_read_and_stays_compressed(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    for path in (lab.backend / ".pulumi/history").rglob("*.json"):
        path.unlink()
    compressed = compress(lab)
    assert engine.exists(lab.options)
    engine.init(lab.options)
    assert lab.embedded("up").steps == []
    lab.program('a = Thing("a", size=2)')
    assert lab.embedded("up").steps == ["delete b", "update a"]
    assert json.loads(gzip.decompress(compressed.read_bytes()))["checkpoint"]["latest"]["resources"]
    gz = {"dev.json.gz", "dev.json.gz.bak", "dev-N.history.json.gz", "dev-N.checkpoint.json.gz"}
    assert files(lab) == gz
    engine.remove(lab.options)
    assert files(lab) == set()


@pytest.mark.parametrize("cut", [0, 5, 200])
def test_a_damaged_compressed_state_is_refused_and_not_changed(lab: Lab, cut: int) -> None:
    lab.program(TWO)
    lab.embedded("up")
    compressed = compress(lab)
    compressed.write_bytes(compressed.read_bytes()[:cut])
    before = files(lab), compressed.read_bytes()
    for operation in (engine.up, engine.preview, engine.destroy, engine.resources):
        with pytest.raises(engine.StateError, match="is damaged"):
            operation(lab.options)
    assert (files(lab), compressed.read_bytes()) == before


def test_a_state_of_an_unknown_compression_is_refused_and_nothing_is_written(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    lab.checkpoint.rename(f"{lab.checkpoint}.zst")
    before = files(lab)
    engine.init(lab.options)
    for operation in (engine.up, engine.preview, engine.destroy, engine.resources):
        with pytest.raises(engine.StateError, match="PULUMI_DIY_BACKEND_ZSTD"):
            operation(lab.options)
    assert files(lab) == before


@pytest.mark.cli
def test_both_engines_continue_a_compressed_state(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_DIY_BACKEND_GZIP", "true")
    lab.program(TWO)
    lab.cli("up")
    assert "dev.json.gz" in files(lab)
    lab.program(TWO.replace('"b", ', '"b", key="new", '))
    assert lab.embedded("up").steps == ["update b"]
    assert not {"dev.json", "dev.json.bak"} & files(lab)
    assert lab.cli("preview").steps == []
    history = json.loads(lab.pulumi("stack", "history", "--stack", STACK, "--json").stdout)
    assert [entry["kind"] for entry in history] == ["update", "update"]
    monkeypatch.delenv("PULUMI_DIY_BACKEND_GZIP")
    lab.program(TWO)
    assert not lab.cli("up").failed
    assert "dev.json" in files(lab)
    assert lab.embedded("preview").steps == []


def test_the_hash_of_a_lock_is_removed_with_it(lab: Lab) -> None:
    """As after a killed CLI, which writes one beside each file."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = leave_lock(lab, pid=gone.pid)
    for name in ("left", "orphan"):
        lock.with_name(f"{name}.json.attrs").write_text("{}")
    lab.program(TWO)
    assert not lab.embedded("up").failed
    assert list(lock.parent.iterdir()) == []


def test_a_full_disk_keeps_the_last_state(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.program(TWO)
    lab.embedded("up")
    before = lab.checkpoint.read_text()

    def on_a_full_disk(path: Path) -> Path:
        partial = partial_path(path)
        if path == lab.checkpoint:
            partial.symlink_to("/dev/full")  # where the kernel refuses each write, full(4)
        return partial

    lab.program('Thing("new")')
    with monkeypatch.context() as patch:
        patch.setattr("observatory.files.atomic.partial_path", on_a_full_disk)
        outcome = lab.embedded("up")
    assert lab.locks == []
    assert "No space left" in outcome.message
    assert lab.checkpoint.read_text() == before
