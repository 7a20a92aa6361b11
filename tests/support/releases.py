"""Further versions of the reference service, good and bad: the real artifact, a fault inside."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path

from observatory.delivery.releases import sign_release

CRASH_AFTER_S = 20
# What a version does wrong, by its name: at each request, and once at the start.
AT_REQUEST = {
    "unready": "if scope['path'] == '/health/ready': raise RuntimeError('never ready')",
    "broken": "if scope['path'] == '/v1/metrics': raise RuntimeError('always')",
    # With the first request of a user's, which the smoke suite does not make: whatever the deployment takes until then.
    "crashing": "if scope['query_string'] == b'limit=1': crash()",
    "slow": "if scope['path'].startswith('/v1/'): await asyncio.sleep(1.5)",
}
AT_START = {
    # 5 % of the writes, each twentieth of an instance.
    "failing": """
import storage_service.buffer as buffer
write, numbers = buffer.WriteBuffer.write, itertools.count(1)

async def sometimes(self, items, **more):
    if next(numbers) % 20 == 0:
        raise RuntimeError('a fault')
    await write(self, items, **more)

buffer.WriteBuffer.write = sometimes
""",
    # A connection with each write, but the last one: the service still answers.
    "leaking": """
import storage_service.buffer as buffer
write, leaked = buffer.WriteBuffer.write, []

async def never_returned(self, items, **more):
    pool = self._database._pool
    if len(leaked) < pool.max_size - 1:
        leaked.append(await pool.getconn())
    await write(self, items, **more)

buffer.WriteBuffer.write = never_returned
""",
    "crashing": f"""
armed = []

def crash():
    if not armed:
        armed.append(threading.Timer({CRASH_AFTER_S}, lambda: os._exit(1)))
        armed[0].start()
""",
}

SNIPPET = """
import asyncio, itertools, os, threading
import storage_service.app as module

class Faulty(module.Starlette):
    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            {at_request}
            pass
        await super().__call__(scope, receive, send)

module.Starlette = Faulty
{at_start}
"""


def variant(
    source: Path, version: str, target: Path, *, key: str, fault: str = "good", schema_min: int | None = None
) -> Path:
    """Write `version` with a fault into the directory `target`, made from an artifact, and return the new artifact.

    `key` is the private key that signs it.
    """
    if fault not in {"good", *AT_REQUEST, *AT_START}:
        raise ValueError(f"no version is known that is {fault}")
    snippet = SNIPPET.format(at_request=AT_REQUEST.get(fault, ""), at_start=AT_START.get(fault, ""))
    manifest = json.loads(source.with_name(source.name.replace(".tar.gz", ".json")).read_text())
    target.mkdir(parents=True, exist_ok=True)
    artifact = target / f"{version}.tar.gz"
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        with tarfile.open(source) as archive:
            archive.extraction_filter = lambda member, _path: member  # Debian 12's Python knows no filters by name
            archive.extractall(tree)  # noqa: S202 - our own
        launcher = tree / "bin/storage-service"
        importing = "from storage_service.__main__ import main"
        launcher.write_text(launcher.read_text().replace(importing, f"{snippet}\n{importing}"))
        release_file = tree / "lib/storage_service/release.json"
        release = {**json.loads(release_file.read_text()), "version": version}
        release_file.write_text(json.dumps(release))
        with tarfile.open(artifact, "w:gz", compresslevel=1) as archive:
            for entry in sorted(tree.iterdir()):
                archive.add(entry, arcname=entry.name)
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    changed = {**manifest, "version": version, "file": artifact.name, "sha256": digest}
    if schema_min is not None:
        changed |= {"schema_min": schema_min, "schema_max": schema_min}
    manifest_file = artifact.with_name(f"{version}.json")
    manifest_file.write_text(json.dumps(changed))
    sign_release(artifact, manifest_file, key)
    return artifact
