"""Runs a release on a bench and checks it against the contract, from its manifest to its end.

A requirement that cannot be checked because of a failure before it is `not tested`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.database.verification_rows import marked_rows
from observatory.delivery.releases import Manifest
from observatory.nodes import Paths, Unit
from observatory.nodes.storage import release_directory, storage
from observatory.platforms.content_checks import check_content
from observatory.platforms.contract import api, archive, life, resources
from observatory.platforms.contract.api import Instance
from observatory.platforms.contract.bench import FLEET, Bench, running_bench
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.platforms.place import Place
from observatory.platforms.smoke import Run, exercise
from observatory.platforms.trial_checks import BURST, send_burst
from observatory.progress import Reporter

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 30.0
REQUESTS_PER_MINUTE = 1_000_000
STARTED = (
    *("environment", "health", "headers", "openapi", "keys", "api", "writes", "limits", "errors", "metrics"),
    *("database", "logs", "end"),
)
"""The sections whose requirements need a running instance."""


def examine(
    artifact: Path,
    manifest_file: Path,
    *,
    home: Path,
    rootfs: Path,
    migrations: Path,
    report: Reporter,
) -> Findings:
    """Check a release, and leave nothing behind.

    Args:
        artifact: the archive of the release.
        manifest_file: its manifest.
        home: directory of the bench, which is removed at the end.
        rootfs: root filesystem of the bench's daemons and of the release.
        migrations: directory of the migrations.
        report: gets the progress.
    """
    findings = Findings(report=report)
    manifest = archive.check_manifest(findings, artifact, manifest_file)
    if manifest is None:
        _not_tested(findings, ("archive", "check", "start", *STARTED))
        return findings
    with running_bench(home, rootfs, migrations=migrations, schema_max=manifest.schema_max, report=report) as made:
        _check_schema(findings, made, manifest)
        unit = _unit(made, manifest)
        directory = release_directory(Paths(), FLEET, manifest.version, manifest.sha256)
        if not archive.check_archive(findings, made.sandbox, artifact, manifest, directory):
            _not_tested(findings, ("check", "start", *STARTED))
            return findings
        life.check_self_check(findings, made, unit, manifest)
        if life.check_start(findings, made, unit):
            _check_running(findings, made, unit, manifest)
        else:
            _not_tested(findings, STARTED)
    return findings


def _check_schema(findings: Findings, made: Bench, manifest: Manifest) -> None:
    with findings.requirement("manifest", "schema_min and schema_max are versions that the migrations have"):
        if not manifest.schema_min <= made.schema_version <= manifest.schema_max:
            raise ContractError(
                f"the manifest says {manifest.schema_min} to {manifest.schema_max}, and the newest migration that fits "
                f"is {made.schema_version}"
            )


def _unit(made: Bench, manifest: Manifest) -> Unit:
    return storage(
        made.settings,
        Paths(),
        fleet=FLEET,
        index=1,
        version=manifest.version,
        sha256=manifest.sha256,
        start_seconds=manifest.start_seconds,
    )


def _check_running(findings: Findings, made: Bench, unit: Unit, manifest: Manifest) -> None:
    instance = _instance(made, unit, manifest)
    life.check_listener(findings, unit)
    api.check_health(findings, instance)
    api.check_keys(findings, instance)
    prompts = _smoke(findings, made, unit, manifest)
    resources.check_resources(findings, made, unit)
    api.check_pages(findings, instance)
    api.check_writes(findings, instance)
    api.check_metrics(findings, instance, manifest.metrics)
    life.check_loss_of_database(findings, made, instance, unit)
    life.check_older_schema(findings, made, unit, manifest.schema_min)
    life.check_login(findings, made, instance)
    life.check_log(findings, made, instance, unit, prompts)
    life.check_end(findings, made, instance, unit)


def _smoke(findings: Findings, made: Bench, unit: Unit, manifest: Manifest) -> list[str]:
    """Run the tests that come before every deployment; return the prompts and keys that they sent."""
    place = Place(name="the instance", url=f"http://127.0.0.1:{next(iter(unit.ports.values()))}")
    with database.connect(made.owner, purpose="contract") as owner, marked_rows(owner) as rows:
        run = Run.with_database(rows)
        with findings.requirement("api", "the smoke suite passes, as before every deployment"):
            exercise(place, run, version=manifest.version)
        with findings.requirement("api", "the largest write, its pages, and a trace that changes are right"):
            check_content(place, run, version=manifest.version, schema_max=manifest.schema_max)
        with findings.requirement("api", f"{BURST} requests at once are answered"):
            send_burst(place, run)
    return [secret for _, secret in run.private]


def _instance(made: Bench, unit: Unit, manifest: Manifest) -> Instance:
    both = ("read", "write")
    scopes = {"both": both, "read": ("read",), "write": ("write",), "revoked": both}
    keys = {
        name: database.create_api_key(
            made.owner, name=f"release check: {name}", scopes=allowed, rate_limit_rpm=REQUESTS_PER_MINUTE
        )
        for name, allowed in scopes.items()
    }
    client = partial(_client, f"http://127.0.0.1:{next(iter(unit.ports.values()))}")
    return Instance(
        client=client,
        keys=keys,
        revoke=lambda key: database.revoke_api_key(made.owner, key=key),
        version=manifest.version,
        fleet=FLEET,
    )


def _client(url: str, key: str | None) -> httpx.Client:
    import httpx  # noqa: PLC0415 - only while a release is checked

    from observatory.platforms.contract.bounded_transport import BoundedTransport  # noqa: PLC0415

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    transport = BoundedTransport(seconds=ANSWER_SECONDS)
    return httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, transport=transport)


def _not_tested(findings: Findings, sections: tuple[str, ...]) -> None:
    for section in sections:
        findings.add(section, "the requirements of this section", "not tested")
