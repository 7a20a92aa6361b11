"""`release check` names what a release does and what it does not do, and leaves nothing behind."""

import contextlib
import hashlib
import http.server
import io
import json
import platform
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from observatory.cli import delivery
from observatory.delivery.environment import HostsError
from observatory.nodes import Paths
from observatory.nodes.storage import LAME_DUCK_SECONDS, storage
from observatory.platforms.contract import api, archive, bench, examination, life, resources
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.platforms.instance_process import process_of, usage
from observatory.progress import silent
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings
from observatory.waiting import wait_until
from service.build import build

ROOT = Path(__file__).parents[2]
VERSION = "v1.0.0"
PYTHON = """#!/usr/bin/python3
import http.server, json, os, signal, sys
if "--check" in sys.argv:
    print(json.dumps({{"name": "other-service", "version": "v1.0.0", "schema_min": 3, "schema_max": 8}}))
    sys.exit(0)
{}
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Observatory-Version", "v0.9.9")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_POST = do_GET
    def log_message(self, *words):
        print(self.headers.get("Authorization"), flush=True)
import socket
other = socket.create_server(("127.0.0.1", 0))
host, port = os.environ["STORAGE_LISTEN"].split(":")
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""


def pack(directory: Path, files: dict[str, tuple[bytes, int]], **manifest: Any) -> tuple[Path, Path]:
    """Write an archive of files, each with its mode, and its manifest."""
    artifact = directory / "other-service.tar.gz"
    with tarfile.open(artifact, "w:gz") as packed:
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            packed.addfile(member, io.BytesIO(content))
    return artifact, describe(artifact, **manifest)


def describe(artifact: Path, **fields: Any) -> Path:
    file = artifact.with_name("other-service.json")
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    document = {"name": "other-service", "version": VERSION, "sha256": digest, "schema_min": 3, "schema_max": 8}
    file.write_text(json.dumps({**document, **fields}))
    return file


def script(text: str) -> dict[str, tuple[bytes, int]]:
    return {archive.PROGRAM: (PYTHON.format(text).encode(), 0o755)}


@pytest.fixture
def check(rootfs: Path, tmp_path: Path) -> Iterator[Callable[[Path, Path], Findings]]:
    """Examine a release on a bench, and check afterwards that nothing is left of it."""
    home = tmp_path / "bench"

    def run(artifact: Path, manifest: Path) -> Findings:
        return examination.examine(
            artifact, manifest, home=home, rootfs=rootfs, migrations=ROOT / "migrations", report=silent
        )

    yield run
    assert not home.exists()
    assert not Sandbox(home, rootfs).members()
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(home) in str(process.info["cmdline"])]


def outcomes(findings: Findings, outcome: str) -> dict[str, str]:
    return {each.requirement: each.detail for each in findings.all if each.outcome == outcome}


@pytest.mark.slow
def test_reference_service_meets_every_requirement(check: Callable[[Path, Path], Findings], tmp_path: Path) -> None:
    built = build(VERSION, tmp_path)
    findings = check(built.path, built.manifest_path)
    assert {each.outcome for each in findings.all} == {"passed"}, outcomes(findings, "failed")
    assert {"check", "headers", "api", "metrics", "database", "end"} <= {each.section for each in findings.all}


@pytest.mark.slow
def test_service_that_does_hardly_anything_right_gets_a_finding_for_each_fault(
    check: Callable[[Path, Path], Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also logs keys and ignores SIGTERM, and is removed all the same."""
    monkeypatch.setattr(life, "NOTICE_SECONDS", 2.0)
    monkeypatch.setattr(life, "LOGIN_SECONDS", 0.0)
    monkeypatch.setattr(api, "REVOKED_SECONDS", 1.0)
    quick = LocalSettings.model_validate({"fleets": {"drain_seconds": 1}})
    settings = bench._settings().model_copy(update={"fleets": quick.fleets})
    monkeypatch.setattr(bench, "_settings", lambda: settings)
    findings = check(*pack(tmp_path, script(STUBBORN), metrics=["storage_pool_in_use"]))
    failed = outcomes(findings, "failed")
    said = " ".join(failed.values())
    assert "the header X-Observatory-Version is v0.9.9, expected v1.0.0" in said
    assert "GET /v1/traces responded 200, expected 401" in said
    assert "/metrics has no sample" in said
    assert "although STORAGE_FLEET is 'red'" in said
    assert "`--check` exited with 0 although STORAGE_FLEET is missing" in said
    assert "GET /v1/traces responded 200 1 s after the key was revoked" in said
    assert "/health/ready responds 200 without the database" in said
    assert "the program also listens on 127.0.0.1:" in said
    assert "/health/ready responds 200 with a schema below 3" in said
    assert "the output of the instance has an API key" in said
    assert f"the program runs after SIGTERM, {1 + LAME_DUCK_SECONDS + 5} s later" in said
    assert "storage_pool_in_use, which the manifest names, is exported" in failed
    assert "storage_buffer_size is exported" in outcomes(findings, "missing")
    assert "GET /health/live responds 200 to a request without a key" in outcomes(findings, "passed")


def test_program_that_ends_or_is_another_one_is_not_tested_further(
    check: Callable[[Path, Path], Findings], tmp_path: Path
) -> None:
    text = "print('no module named service'); sys.exit(3)"
    findings = check(*pack(tmp_path, script(text), version="v1.0.1", schema_max=9, start_seconds=60))
    failed = outcomes(findings, "failed")
    assert "expected" in failed["`--check` exits with 0 and prints name, version and schema range"]
    assert "no module named service" in failed["GET /health/ready responds 200 within 60 s of the start"]
    assert {each.outcome for each in findings.all if each.section in {"health", "api", "end"}} == {"not tested"}


ELF_OF_ANOTHER_MACHINE = struct.pack(
    "<4sBBB9xHH", b"\x7fELF", 2, 1, 1, 2, 62 if platform.machine() == "aarch64" else 183
)
ARCHIVES: dict[str, tuple[dict[str, tuple[bytes, int]], str]] = {
    "no entry point": ({"service": (b"", 0o755)}, "the archive has no bin/storage-service"),
    "not executable": ({archive.PROGRAM: (b"#!/bin/sh\n", 0o644)}, "is not executable"),
    "other machine": ({archive.PROGRAM: (ELF_OF_ANOTHER_MACHINE, 0o755)}, "bin/storage-service is for "),
    "outside": ({"../evil": (b"", 0o755)}, "is not a plain file below the archive's root"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_fault_of_an_archive_is_named(kind: str, rootfs: Path, tmp_path: Path) -> None:
    files, expected = ARCHIVES[kind]
    findings, sandbox = Findings(), Sandbox(tmp_path / "home", rootfs)
    artifact, file = pack(tmp_path, files)
    manifest = archive.check_manifest(findings, artifact, file)
    assert manifest is not None
    sandbox.make_home()
    assert not archive.check_archive(findings, sandbox, artifact, manifest, "/srv/releases/blue/v1")
    assert findings.all[-1].outcome == "failed"
    assert expected in findings.all[-1].detail


@pytest.mark.parametrize("kind", ["no tar", "cut"])
def test_file_that_is_no_archive_is_named(kind: str, rootfs: Path, tmp_path: Path) -> None:
    artifact, _ = pack(tmp_path, {archive.PROGRAM: (bytes(range(256)) * 4000, 0o755)})
    artifact.write_bytes(b"no tar" if kind == "no tar" else artifact.read_bytes()[:-300])
    findings, sandbox = Findings(), Sandbox(tmp_path / "home", rootfs)
    manifest = archive.check_manifest(findings, artifact, describe(artifact))
    assert manifest is not None
    sandbox.make_home()
    assert not archive.check_archive(findings, sandbox, artifact, manifest, "/srv/releases/blue/v1")
    assert "not a release archive" in findings.all[-1].detail


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"version": "1.0"}, "version"),
        ({"sha256": "0" * 64}, "SHA-256 is"),
        ({"schema_min": None}, "schema_min"),
        ({"start_seconds": 9999}, "start_seconds"),
    ],
)
def test_fault_of_a_manifest_is_named_without_a_bench(
    fields: dict[str, Any], expected: str, check: Callable[[Path, Path], Findings], tmp_path: Path
) -> None:
    findings = check(*pack(tmp_path, script(""), **fields))
    assert findings.failed
    assert expected in " ".join(outcomes(findings, "failed").values())
    assert "not tested" in {each.outcome for each in findings.all}


def test_command_prints_one_document_and_exits_with_1(tmp_path: Path) -> None:
    artifact, _ = pack(tmp_path, script(""), version="1.0")
    done = CliRunner().invoke(delivery.releases, ["check", str(artifact), "--output", "json"])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["passed"] is False
    assert document["findings"][0]["place"] == "docs/service-contract.md#manifest"
    table = CliRunner().invoke(delivery.releases, ["check", str(artifact)])
    assert "docs/service-contract.md#manifest" in table.stdout


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """Is ill with 500, never ends /metrics, and returns one page of a trace for ever."""

    def do_GET(self) -> None:
        if self.path.startswith("/v1/traces/"):
            self._send(200, b'{"items": [{"span_id": "0"}], "next": "again"}')
            return
        if self.path == "/metrics":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"storage_writes_total 1\n" * 4096)
            return
        self._send(500 if self.path == "/health/ready" else 503)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(201)

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Log nothing."""


@pytest.fixture
def misbehaving() -> Iterator[tuple[api.Instance, int]]:
    """An instance that listens on every loopback address, and its port."""
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Misbehaving) as server:  # noqa: S104 - what is tested
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        client = partial(examination._client, f"http://127.0.0.1:{server.server_port}")
        keys = dict.fromkeys(("both", "read", "write", "revoked"), "key")
        yield (
            api.Instance(client=client, keys=keys, revoke=lambda _key: None, version=VERSION, fleet="blue"),
            server.server_port,
        )
        server.shutdown()
        thread.join()


def test_response_that_never_ends_is_a_finding(misbehaving: tuple[api.Instance, int]) -> None:
    findings = Findings()
    api.check_metrics(findings, misbehaving[0], None)
    assert findings.all[0].outcome == "failed"
    assert findings.all[0].detail == "the response to GET /metrics is longer than 16 MiB"


def test_only_503_is_right_without_the_database(misbehaving: tuple[api.Instance, int]) -> None:
    with pytest.raises(ContractError, match="GET /health/ready responded 500, expected 503"):
        life.check_refusals(misbehaving[0])


def test_request_in_the_lame_duck_time_is_answered_and_later_need_not_be(
    misbehaving: tuple[api.Instance, int],
) -> None:
    life.check_lame_duck(misbehaving[0], time.monotonic() - LAME_DUCK_SECONDS)
    with pytest.raises(ContractError, match=r"s after SIGTERM: GET /health/ready responded 500, expected 503"):
        life.check_lame_duck(misbehaving[0], time.monotonic() + 600)


def test_pages_without_an_end_are_a_finding(misbehaving: tuple[api.Instance, int]) -> None:
    findings = Findings()
    api.check_pages(findings, misbehaving[0])
    assert [each.outcome for each in findings.all] == ["failed"]
    assert "the pages of 5 spans have no end" in findings.all[0].detail


def test_program_that_listens_on_every_address_is_noticed(misbehaving: tuple[api.Instance, int]) -> None:
    findings = Findings()
    unit = storage(
        LocalSettings.model_validate({"ports": {"blue": misbehaving[1]}}),
        Paths(),
        fleet="blue",
        index=1,
        version=VERSION,
        sha256="0" * 64,
    )
    life.check_listener(findings, unit)
    assert findings.all[0].outcome == "failed"
    assert "also listens on 127.0.0.2, so on every address" in findings.all[0].detail


def test_every_section_that_needs_an_instance_is_not_tested_after_a_failed_start() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (api, examination, life))
    named = {part.split('"')[1] for part in sources.split("findings.requirement(")[1:]}
    assert named - {"manifest", "check", "start"} == set(examination.STARTED)


def test_every_section_of_a_finding_is_a_heading_of_the_page() -> None:
    page = (ROOT / "docs/service-contract.md").read_text().splitlines()
    headings = {line.removeprefix("## ").lower().replace(" ", "-") for line in page if line.startswith("## ")}
    sources = "".join(Path(str(module.__file__)).read_text() for module in (api, archive, examination, life))
    named = {part.split('"')[1] for part in sources.split("findings.requirement(")[1:]}
    assert named
    assert named <= headings


def test_connections_of_an_instance_and_its_children_are_counted() -> None:
    text = "import socket, sys; kept = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(3)]"
    parent = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2] + '; input()', sys.argv[1]])"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        argv = [sys.executable, "-c", parent, str(port), text]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
            accepted = [server.accept()[0] for _ in range(3)]
            with resources._counting(psutil.Process(process.pid), port) as counts:
                wait_until(lambda: max(counts) == 3, 60)
            assert max(counts) == 3
            assert process.stdin is not None
            process.stdin.close()
        for each in accepted:
            each.close()


def test_an_instance_that_has_ended_is_named() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = psutil.Process(process.pid)
    for read in (lambda: resources._listeners(found), lambda: process_of(None), lambda: usage(found)):
        with pytest.raises(HostsError, match="the instance under test has ended"):
            read()
